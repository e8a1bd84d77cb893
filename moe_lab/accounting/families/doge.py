"""Doge: thousands of experts of one row each, found by the product of two small sets of keys."""

import math
from dataclasses import replace

from moe_lab.accounting.blocks import linear, mlp
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_heads,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, Weight


def read_dynamic_attention(fields: Fields) -> list[Part]:
    """Attention that keeps the keep_window_size keys whose values score best, by a projection of the values."""
    _, kv_heads, head_dim = read_heads(fields, kv_heads=None)
    bias = fields.flag("attention_bias", False)
    attention = read_attention(
        fields,
        kv_heads=None,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        window=fields.size("sliding_window", default=None),
    )
    kept = fields.size("keep_window_size", default=2048)
    return [
        *(replace(part, chosen=kept) if isinstance(part, Attention) else part for part in attention),
        *linear("attention", kv_heads * head_dim, kv_heads, bias=bias),
        Weight("attention", (kv_heads,), use="scale"),
    ]


@family("doge")
def doge(fields: Fields) -> Architecture:
    """With is_moe, num_experts experts of width 1 beside a feed-forward network; without, the network alone.

    The router scores 2 * floor(sqrt(num_experts)) keys; an expert is a pair of them.
    Source: SmallDoge 2025, Doge.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    bias, hidden = fields.flag("mlp_bias", False), fields.size("intermediate_size")
    residuals = Weight("norms", (d_model,), 2, use="scale")
    layer = [*pre_norms(fields), residuals, *read_dynamic_attention(fields)]
    if not fields.flag("is_moe", False):
        layer += mlp("dense_mlp", d_model, hidden, bias=bias)
        return decoder(fields, [layer] * layers, moe_layers=0)
    num_experts, top_k = read_experts(fields, "num_experts")
    keys = math.isqrt(num_experts)
    if top_k > keys**2:
        raise ValueError(f"{fields.name('num_experts_per_tok')} must be at most {keys**2}, pairs of keys; got {top_k}")
    layer += [
        *mlp("shared_experts", d_model, hidden, bias=bias),
        *linear("router", d_model, 2 * keys),
        *mlp("experts", d_model, 1, gated=False, copies=num_experts, used=top_k),
    ]
    return decoder(fields, [layer] * layers, experts=(num_experts, top_k), moe_layers=layers)
