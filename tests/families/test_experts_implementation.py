"""Every family with Transformers' experts interface on our operators: logits, gradients, and what is generated."""

import importlib.util
import pkgutil
from pathlib import Path

import pytest
import torch
import transformers

from moe_lab import hf
from moe_lab.hf.experts import plain_activation

from .small_configs import MODEL_TYPES, WHOLES, config_class


def uses_the_interface(folder):
    """Whether a family's modelling file decorates its experts."""
    spec = importlib.util.find_spec(f"transformers.models.{folder}")
    path = Path(spec.origin).with_name(f"modeling_{folder}.py")
    return path.is_file() and "@use_experts_implementation" in path.read_text()


def folder_of(model_type):
    return config_class(model_type).__module__.split(".")[-2]


FAMILIES = [name for name in sorted(set(MODEL_TYPES) - set(WHOLES)) if uses_the_interface(folder_of(name))]
NOT_TRIED = {"diffusion_gemma"}
"""Families with the interface that are not built here: it generates by diffusion, and takes no tokens alone."""


def test_enough_families_are_tried():
    with_interface = {module.name for module in pkgutil.iter_modules(transformers.models.__path__) if module.ispkg}
    with_interface = {name for name in with_interface if uses_the_interface(name)}
    tried = {folder_of(name) for name in FAMILIES}
    assert len(tried) >= 60
    assert with_interface - tried == NOT_TRIED


def run(model, tokens, implementation):
    """Logits and gradients of a model under an implementation of its experts."""
    for part in model.modules():
        if isinstance(part, transformers.PreTrainedModel):
            part.set_experts_implementation(implementation)
    model.zero_grad()
    written = {"decoder_input_ids": tokens[:, :7]} if model.config.is_encoder_decoder else {}
    logits = model(tokens, use_cache=False, **written)
    logits = getattr(logits, "logits", logits)
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * upstream).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_and_gradients_are_those_of_eager(model_type, small_config, build, agree):
    hf.register()
    model = build(small_config(model_type), "cpu", attn_implementation="eager").eval()
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


def test_plain_experts_take_the_fused_path_and_others_their_own_words(small_config, build):
    kinds = {"mixtral": "swiglu", "gemma4_text": None, "gpt_oss": None, "nemotron_h": None, "muse_spark_text": None}
    for model_type, activation in kinds.items():
        model = build(small_config(model_type), "meta")
        found = {plain_activation(part) for part in model.modules() if hasattr(part, "_is_expert_parallel")}
        assert found == {activation}, model_type
