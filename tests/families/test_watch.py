"""Routing that is watched against the logits of the routers themselves; who cannot be watched is refused."""

import pytest
import torch

from moe_lab import hf

from .test_experts_implementation import forward

ROUTER_LOGITS = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")


@pytest.mark.parametrize("model_type", ROUTER_LOGITS)
def test_loads_are_those_of_the_router_logits(model_type, small_config, build):
    model = build(small_config(model_type), "cpu", attn_implementation="eager").eval()
    with hf.watch(model) as seen:
        answer = forward(model, output_router_logits=True)
    assert len(answer.router_logits) == len(seen.layers)
    for layer, logits in zip(seen.layers, answer.router_logits, strict=True):
        chosen = logits.reshape(24, -1).topk(layer.top_k).indices
        assert layer.experts.sort().values.equal(chosen.sort().values)
        assert layer.load.equal(torch.bincount(chosen.reshape(-1), minlength=layer.num_experts))


def test_a_family_without_the_interface_is_refused_by_the_name_of_its_class(small_config, build):
    with pytest.raises(ValueError, match=r"got Llama4ForCausalLM: Llama4TextExperts, .*without the experts interface"):
        hf.watch(build(small_config("llama4_text"), "meta"))
