"""Every family with Transformers' experts interface on our operators: logits, gradients, what is written."""

import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import transformers

from moe_lab import hf
from moe_lab.hf.experts import plain_activation

from .small_configs import GEMMA_TOWER, MODEL_TYPES, SMALL, WHOLES, config_class


def uses_the_interface(folder):
    """Whether a family's modelling file decorates its experts."""
    spec = importlib.util.find_spec(f"transformers.models.{folder}")
    path = Path(spec.origin).with_name(f"modeling_{folder}.py")
    return path.is_file() and "@use_experts_implementation" in path.read_text()


def folder_of(model_type):
    return config_class(model_type).__module__.split(".")[-2]


FAMILIES = [name for name in sorted(set(MODEL_TYPES) - set(WHOLES)) if uses_the_interface(folder_of(name))]
DIFFUSION = "diffusion_gemma"
"""Writes whole blocks by denoising them: not among those that are counted, and built here by itself."""
ALL_IDS = {"gemma4_text": {"vocab_size_per_layer_input": SMALL["vocab_size"]}}
"""So that a family can read whatever it writes."""


def test_every_family_with_the_interface_is_tried():
    with_interface = {module.name for module in pkgutil.iter_modules(transformers.models.__path__) if module.ispkg}
    with_interface = {name for name in with_interface if uses_the_interface(name)}
    assert len(with_interface) >= 60
    assert with_interface == {folder_of(name) for name in FAMILIES} | {DIFFUSION}
    assert with_interface == {family.name for family in hf.families() if family.served}


def denoising_model():
    text = {**SMALL, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16}
    text |= {**heads, "num_experts": 6, "top_k_experts": 2}
    config = transformers.DiffusionGemmaConfig(text_config=text, vision_config=GEMMA_TOWER, canvas_length=8)
    torch.manual_seed(0)
    return transformers.DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation="eager")


def switch(model, implementation):
    for part in model.modules():
        if isinstance(part, transformers.PreTrainedModel):
            part.set_experts_implementation(implementation)


def run(model, tokens, implementation):
    """Logits and gradients of a model under an implementation of its experts."""
    switch(model, implementation)
    model.zero_grad()
    written = {"decoder_input_ids": tokens[:, :7]} if reads_and_writes(model) else {"use_cache": False}
    logits = model(tokens, **written)
    logits = getattr(logits, "logits", logits)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * upstream).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def reads_and_writes(model):
    return model.config.is_encoder_decoder or model.config.model_type == DIFFUSION


def generate(model, tokens, implementation):
    """What a model writes behind some tokens, the likeliest token each time; None if it writes nothing."""
    switch(model, implementation)
    torch.manual_seed(1)  # the diffusion model draws
    if hasattr(model, "generate") and model.can_generate():
        written = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        return getattr(written, "sequences", written)
    if not isinstance(getattr(model, "lm_head", None), torch.nn.Linear):
        return None
    for _ in range(6):  # decoders of larger models: Transformers generates with the whole only
        tokens = torch.cat([tokens, model(tokens, use_cache=False)[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # in Transformers' generation by diffusion
@pytest.mark.parametrize("model_type", [*FAMILIES, DIFFUSION])
def test_logits_gradients_and_what_is_written_are_those_of_eager(model_type, small_config, build, agree):
    hf.register()
    if model_type == DIFFUSION:
        model = denoising_model().eval()
    else:
        config = small_config(model_type, **ALL_IDS.get(model_type, {}))
        model = build(config, "cpu", attn_implementation="eager").eval()
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:  # experts: as they are drawn, their answers are lost beside the residual stream
            parameter.data.normal_(std=0.5 * parameter.shape[-1] ** -0.5, generator=draw)
        elif name.endswith("bias"):
            parameter.data.normal_(std=0.1, generator=draw)
    tokens = torch.arange(24).reshape(2, 12)
    (want, wanted), (got, gradients) = (run(model, tokens, name) for name in ("eager", "moe_lab"))
    agree(f"{model_type}: logits", got, want, 1e-5)
    assert gradients.keys() == wanted.keys()
    undefined = {name: gradient.isnan() for name, gradient in wanted.items()}  # Gemma 4's own, of an embedding
    assert all(torch.equal(gradients[name].isnan(), where) for name, where in undefined.items())
    wanted, gradients = ({name: g.nan_to_num(0.0) for name, g in each.items()} for each in (wanted, gradients))
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():  # what cancels, such as the gate's where one weight is always 1, is rounding
        allowed = max(1e-4 * gradient.norm(), 2e-6 * whole)
        assert (gradients[name] - gradient).norm() <= allowed, f"{model_type}: {name}"
    with torch.no_grad():
        want, got = (generate(model, tokens, name) for name in ("eager", "moe_lab"))
    assert (want is None) == (model_type == "openai_privacy_filter")  # it labels tokens
    assert want is None or (torch.equal(got, want) and want.shape[1] > tokens.shape[1])


@pytest.mark.parametrize("model_type", ["switch_transformers", "llama4_text", "jetmoe"])
def test_families_without_the_interface_are_refused_and_listed(model_type, small_config, build):
    model = build(small_config(model_type))
    folder = folder_of(model_type)
    (family,) = (family for family in hf.families() if family.name == folder)
    assert not family.served
    with pytest.raises(ValueError, match=re.escape(f"got {type(model).__name__}: {family.reason}")):
        hf.serve(model)


def test_plain_experts_take_the_fused_path_and_others_their_own_words(small_config, build):
    kinds = {"mixtral": "swiglu", "gemma4_text": None, "gpt_oss": None, "nemotron_h": None, "muse_spark_text": None}
    for model_type, activation in kinds.items():
        model = build(small_config(model_type), "meta")
        found = {plain_activation(part) for part in model.modules() if hasattr(part, "_is_expert_parallel")}
        assert found == {activation}, model_type
