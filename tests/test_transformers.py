"""With the same weights our layer equals Transformers' own blocks: outputs and every gradient, to 1e-5 in float32.

The published block is the independent witness: nothing of it is ours, and its experts are a loop.
"""

import pytest
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from moe_lab import MoE

TOKENS, D_MODEL, D_EXPERT, NUM_EXPERTS = 48, 32, 24, 8


def mixtral():
    config = MixtralConfig(
        hidden_size=D_MODEL, intermediate_size=D_EXPERT, num_local_experts=NUM_EXPERTS, num_experts_per_tok=2
    )
    return MixtralSparseMoeBlock(config), dict(top_k=2, renormalise=True)


def qwen3(norm_topk_prob=True):
    config = Qwen3MoeConfig(
        hidden_size=D_MODEL,
        moe_intermediate_size=D_EXPERT,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=3,
        norm_topk_prob=norm_topk_prob,
    )
    return Qwen3MoeSparseMoeBlock(config), dict(top_k=3, renormalise=norm_topk_prob)


def qwen3_unnormalised():
    return qwen3(norm_topk_prob=False)


def olmoe():
    config = OlmoeConfig(
        hidden_size=D_MODEL, intermediate_size=D_EXPERT, num_experts=NUM_EXPERTS, num_experts_per_tok=4
    )
    return OlmoeSparseMoeBlock(config), dict(top_k=4)


def deepseek_v2():
    config = DeepseekV2Config(
        hidden_size=D_MODEL,
        moe_intermediate_size=D_EXPERT,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=3,
        n_shared_experts=2,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=16.0,
    )
    options = dict(num_groups=4, top_groups=2, group_top=1, scale=16.0)
    return DeepseekV2Moe(config), dict(top_k=3, method="group_limited", num_shared=2, **options)


def deepseek_v3():
    config = DeepseekV3Config(
        hidden_size=D_MODEL,
        moe_intermediate_size=D_EXPERT,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=4,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
    )
    block = DeepseekV3MoE(config)
    options = dict(score="sigmoid", renormalise=True, scale=config.routed_scaling_factor, num_groups=4, top_groups=2)
    return block, dict(top_k=4, method="group_limited", num_shared=2, bias=torch.linspace(-0.3, 0.3, 8), **options)


def switch():
    config = SwitchTransformersConfig(
        d_model=D_MODEL,
        d_ff=D_EXPERT,
        num_experts=NUM_EXPERTS,
        expert_capacity=7,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    # its capacity is a number, ours a factor: 7 places for each of 8 experts and 48 tokens
    factor = 7 * NUM_EXPERTS / TOKENS
    return SwitchTransformersSparseMLP(config), dict(
        top_k=1, method="switch", capacity_factor=factor, activation="relu"
    )


@torch.no_grad()
def draw_weights(block):
    draw = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) / parameter.shape[-1] ** 0.5)


def weights_of(block):
    """Our parameter names -> the block's tensors."""
    if isinstance(block, SwitchTransformersSparseMLP):
        experts = [block.experts[f"expert_{e}"] for e in range(NUM_EXPERTS)]
        return {
            "router": block.router.classifier.weight,
            "w_gate_up": [expert.wi.weight for expert in experts],
            "w_down": [expert.wo.weight for expert in experts],
        }
    names = {"router": block.gate.weight, "w_gate_up": block.experts.gate_up_proj, "w_down": block.experts.down_proj}
    if shared := getattr(block, "shared_experts", None):
        names["shared_gate_up"] = [shared.gate_proj.weight, shared.up_proj.weight]
        names["shared_down"] = shared.down_proj.weight
    return names


def gathered(value, read):
    """A tensor as it is; a list stacked as experts, or side by side as gate and up."""
    if not isinstance(value, list):
        return read(value)
    parts = [read(part) for part in value]
    return torch.stack(parts) if len(parts) == NUM_EXPERTS else torch.cat(parts)


def relative_error(got, want):
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


@pytest.mark.parametrize("backend", ["loop", "grouped", "triton"])
@pytest.mark.parametrize(
    "family", [mixtral, qwen3, qwen3_unnormalised, olmoe, deepseek_v2, deepseek_v3, switch], ids=lambda f: f.__name__
)
def test_equals_transformers(family, backend):
    block, options = family()
    draw_weights(block)
    if "bias" in options:
        block.gate.e_score_correction_bias.copy_(options["bias"])
    theirs = weights_of(block.train())
    ours = MoE(D_MODEL, D_EXPERT, NUM_EXPERTS, backend=backend, **options)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(gathered(theirs[name], lambda tensor: tensor))
    x, dy = (torch.randn(1, TOKENS, D_MODEL, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    x_theirs, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_theirs, y_ours = block(x_theirs), ours(x_ours)
    y_theirs.backward(dy)
    y_ours.backward(dy)
    assert relative_error(y_ours, y_theirs) < 1e-5
    assert relative_error(x_ours.grad, x_theirs.grad) < 1e-5
    for name, parameter in ours.named_parameters():
        want = gathered(theirs[name], lambda tensor: tensor.grad)
        assert relative_error(parameter.grad, want) < 1e-5, name
    if options.get("method") == "switch":
        assert int((ours.routing.experts < 0).sum()) > 0, "the comparison must include dropped tokens"
