"""Every family with Transformers' experts interface: on our operators logits, gradients and what is written, and under
a watch not one bit that changes and no assignment that is missed."""

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


TOKENS = torch.arange(12).expand(2, 12)
"""A text, and the same text."""


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


@pytest.fixture(scope="module", params=[*FAMILIES, DIFFUSION])
def model(request, small_config, build):
    """A small model of a family, with experts whose answers show beside the residual stream, and biases."""
    if request.param == DIFFUSION:
        model = denoising_model().eval()
    else:
        config = small_config(request.param, **ALL_IDS.get(request.param, {}))
        model = build(config, "cpu", attn_implementation="eager").eval()
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:
            parameter.data.normal_(std=0.5 * parameter.shape[-1] ** -0.5, generator=draw)
        elif name.endswith("bias"):
            parameter.data.normal_(std=0.1, generator=draw)
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # in Transformers' generation by diffusion
def test_logits_gradients_and_what_is_written_are_those_of_eager(model, request, agree):
    hf.register()
    model_type = request.node.callspec.params["model"]
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


def forward(model, **options):
    written = {"decoder_input_ids": TOKENS[:, :7]} if model.config.is_encoder_decoder else {}
    torch.manual_seed(1)  # the diffusion model draws
    with torch.no_grad():
        return model(TOKENS, use_cache=False, **written, **options)


def logits_of(answer):
    return getattr(answer, "logits", answer)


def test_watched_no_bit_changes_and_every_assignment_is_seen(model, monkeypatch):
    switch(model, "eager")
    want = logits_of(forward(model))
    seen = hf.watch(model)
    counts = {}

    def count(path, experts, x, top_k_index, top_k_weights):
        """A loop beside the experts' own: which experts each token is sent to."""
        for row in top_k_index.tolist():
            for expert in row:
                counts.setdefault(path, [0] * experts.num_experts)[expert] += 1
        return type(experts).forward(experts, x, top_k_index, top_k_weights)

    for path, experts in hf.experts.experts_of(model).items():
        monkeypatch.setattr(experts, "forward", lambda *given, path=path, ours=experts: count(path, ours, *given))
    with seen:
        got = logits_of(forward(model))
    assert torch.equal(got, want)
    assert counts == {layer.name: layer.load.tolist() for layer in seen.layers if layer.calls}
    if model.config.model_type == DIFFUSION:  # reads the text and a canvas that it drew: no ids to put beside them
        assert seen.token_ids is None
        return
    assert seen.token_ids.equal(TOKENS.reshape(-1))
    for layer in seen.layers:
        if layer.calls:  # a text and the same text: rows that were not in the order of the ids would differ
            assert layer.experts[:12].equal(layer.experts[12:]) and len(layer.experts) == layer.tokens == 24


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
