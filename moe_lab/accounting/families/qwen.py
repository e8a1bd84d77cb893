"""Qwen's: experts in every n-th layer but some, with a gated shared expert in the older ones."""

from collections.abc import Sequence

from moe_lab.accounting.blocks import linear, mlp, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_windows,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


def sparse_layers(fields: Fields, layers: int, dense: Sequence[int] = ()) -> list[bool]:
    """Which layers have experts: every decoder_sparse_step-th that is not in mlp_only_layers (or else ``dense``)."""
    step = fields.size("decoder_sparse_step", default=1)
    dense = fields.layer_numbers("mlp_only_layers", layers, default=dense)
    return [number not in dense and (number + 1) % step == 0 for number in range(layers)]


@family("qwen2_moe")
def qwen2_moe(fields: Fields) -> Architecture:
    """A shared expert of its own width beside the routed ones, with a gate of one number.

    Source: Yang et al. 2024, Qwen2 Technical Report (arXiv:2407.10671), section 2.2.2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("qkv_bias", True)
    slides = fields.flag("use_sliding_window", False)
    last = fields.size("max_window_layers", low=0) if slides else 0
    windows = read_windows(fields, layers, lambda number: number % 2 == 1 or number >= last)
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *mlp("shared_experts", d_model, fields.size("shared_expert_intermediate_size")),
        *linear("shared_experts", d_model, 1),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    which = sparse_layers(fields, layers)
    blocks = [
        [*pre_norms(fields), *read_attention(fields, qkv_bias=bias, window=window), *(sparse if has else dense)]
        for has, window in zip(which, windows, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("qwen3_moe")
def qwen3_moe(fields: Fields) -> Architecture:
    """No shared expert; queries and keys normalised head by head.

    Source: Qwen3 Technical Report (arXiv:2505.09388), section 2 and table 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    slides = fields.kind == "qwen3_moe" and fields.flag("use_sliding_window", False)  # the others of its kin never do
    window = fields.size("sliding_window", null=None) if slides else None
    attention = read_attention(fields, qkv_bias=bias, output_bias=bias, qk_norm="head", window=window)
    rest = [*pre_norms(fields), *attention]
    sparse = routed_experts(d_model, fields.size("moe_intermediate_size"), *experts)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    which = sparse_layers(fields, layers)
    blocks = [[*rest, *(sparse if has else dense)] for has in which]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))
