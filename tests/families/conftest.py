"""A small model of every family, as Transformers builds it from a config, and the same config as the count reads it."""

import importlib
from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers.initialization import no_init_weights

from .small_configs import SMALL, SMALL_FOR, config_class

TEXT_MODELS: dict[str, str] = {
    "deepseek_ocr2_text": "DeepseekOcr2TextModel",
    "unlimited_ocr_text": "UnlimitedOcrTextModel",
    "step3p5": "Step3p7TextModel",
    "muse_spark_text": "MuseSparkTextModel",
    "qwen3_vl_moe_text": "Qwen3VLMoeTextModel",
    "qwen3_omni_moe_text": "Qwen3OmniMoeThinkerTextModel",
    "glm4v_moe_text": "Glm4vMoeTextModel",
    "ernie4_5_vl_moe_text": "Ernie4_5_VLMoeTextModel",
    "glm5_next_text": "Glm5NextTextModel",
    "mistral_large4_text": "MistralLarge4TextModel",
}
"""Text configs to whose model Transformers gives no output projection, and that model's class."""


class WithOutput(torch.nn.Module):
    """A text model that Transformers only builds as part of a larger one, with the projection that it has there."""

    def __init__(self, config, **options):
        super().__init__()
        modeling = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        self.config = config
        self.model = getattr(modeling, TEXT_MODELS[config.model_type])._from_config(config, **options)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens, **options):
        return self.lm_head(self.model(tokens, **options).last_hidden_state)


def auto_class(config):
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    if getattr(config, "vision_config", None) is not None:
        return transformers.AutoModelForImageTextToText
    if config.model_type == "mistral4":  # its decoder is listed with the models that see
        return transformers.AutoModelForImageTextToText
    if config.model_type == "openai_privacy_filter":
        return transformers.AutoModelForTokenClassification
    return transformers.AutoModelForCausalLM


@pytest.fixture(autouse=True, scope="module")
def no_config_is_written_out():
    """Transformers makes text of every config, with all its fields, for a log that is switched off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.PreTrainedConfig, "__repr__", object.__repr__)
        yield


@pytest.fixture(scope="session")
def small_config():
    """Call ``small_config(model_type, **changes)``: the family's defaults, small where it has the usual fields."""

    def make(model_type, **changes):
        cls = config_class(model_type)
        own = {name: value for name, value in SMALL.items() if hasattr(cls, name)}
        extra = {"num_experts_per_tok": 2} if getattr(cls, "num_experts_per_tok", 0) is None else {}
        return cls(**{**own, **extra, **SMALL_FOR.get(model_type, {}), **changes})

    return make


@pytest.fixture(scope="session")
def fields_of():
    """Call ``fields_of(config, model_type)``: the fields that the count reads, under the family's own name."""
    return lambda config, model_type: {**config.to_dict(), "model_type": model_type}


@pytest.fixture(scope="session")
def build():
    """Call ``build(config, device)``: the model with its output projection; on the meta device it has no weights."""

    def make(config, device="meta", **options):
        torch.manual_seed(0)
        with torch.device(device), no_init_weights() if device == "meta" else nullcontext():
            if config.model_type in TEXT_MODELS:
                return WithOutput(config, **options)
            model = auto_class(config).from_config(config, **options)
        model.tie_weights()
        return model

    return make
