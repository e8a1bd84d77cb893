"""Families that multiply what attention gives by a gate of its own: Arcee's Trinity, Beam and Laguna."""

from moe_lab.accounting.blocks import grouped_query_attention, linear, mlp, norm, routed_experts
from moe_lab.accounting.families.local_global import layers_by_turns, one_in
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_experts,
    read_heads,
    read_shared_experts,
    read_sparse,
    read_windows,
)
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part, Weight
from moe_lab.checks import check_whole


@family("afmoe")
def afmoe(fields: Fields) -> Architecture:
    """A gate for each channel, norms before and after each part, and a balancing bias for each expert.

    Source: Arcee Trinity Large Technical Report (arXiv:2602.17004), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    heads, _, head_dim = read_heads(fields, head_dim=REQUIRED, kv_heads=None)
    bias = fields.flag("attention_bias", False)
    first = fields.size("num_dense_layers", low=0, high=layers)
    windows = read_windows(fields, layers, one_in(fields.size("global_attn_every_n_layers", default=4)))
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        Weight("router", (experts[0],), use="scale"),
        *read_shared_experts(fields, "num_shared_experts"),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    which = [number >= first for number in range(layers)]
    blocks = layers_by_turns(
        fields,
        windows,
        which,
        sparse,
        dense,
        more=[*pre_norms(fields), *linear("attention", d_model, heads * head_dim)],
        head_dim=REQUIRED,
        kv_heads=None,
        qkv_bias=bias,
        output_bias=bias,
    )
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("beam")
def beam(fields: Fields) -> Architecture:
    """A gate for each channel with a bias for each head, norms before and after each part, and no shared expert.

    Source: Reflection AI 2026, Beam 1.0 (release).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    heads, _, head_dim = read_heads(fields, head_dim=REQUIRED)
    bias = fields.flag("attention_bias", False)
    which = read_sparse(fields, layers, dense_first=3)
    windows = read_windows(fields, layers, lambda number: one_in(6)(number) or number == layers - 1)
    sparse = routed_experts(d_model, fields.size("moe_intermediate_size"), *experts)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    gate = [*linear("attention", d_model, heads * head_dim), Weight("attention", (heads,), use="scale")]
    blocks = layers_by_turns(
        fields,
        windows,
        which,
        sparse,
        dense,
        more=[*pre_norms(fields), *gate],
        head_dim=REQUIRED,
        qkv_bias=bias,
        output_bias=bias,
    )
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("laguna")
def laguna(fields: Fields) -> Architecture:
    """A gate for each head, or for each channel, and layers that may differ in their heads.

    Source: Poolside 2026, Laguna XS.2 (release).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    gating = fields.choice("gating", (True, "per-head", "per-element"), default=True)
    which = read_sparse(fields, layers, dense_first=1)
    windows = read_windows(fields, layers, lambda number: True)

    def attention(heads: int, window: int | None) -> list[Part]:
        one = Fields({**fields.values, "num_attention_heads": heads}, fields.inside)
        _, kv_heads, head_dim = read_heads(one, head_dim=REQUIRED)
        gate = linear("attention", d_model, heads * (head_dim if gating == "per-element" else 1))
        shared = grouped_query_attention(
            d_model, heads, kv_heads, head_dim, qkv_bias=bias, output_bias=bias, window=window
        )
        return [*shared, *norm(head_dim), *norm(head_dim), *gate]

    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        Weight("router", (experts[0],), use="scale"),
        *mlp("shared_experts", d_model, fields.size("shared_expert_intermediate_size")),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = [
        [*pre_norms(fields), *attention(heads, window), *(sparse if has else dense)]
        for heads, window, has in zip(read_heads_per_layer(fields, layers), windows, which, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


def read_heads_per_layer(fields: Fields, layers: int) -> list[int]:
    """How many heads each layer has: num_attention_heads_per_layer, or else num_attention_heads in all."""
    name = "num_attention_heads_per_layer"
    given = fields.entries(name, default=None)
    if given is None:
        return [fields.size("num_attention_heads")] * layers
    if len(given) != layers:
        raise ValueError(f"{fields.name(name)} must have one entry for each of {layers} layers, got {len(given)}")
    return [check_whole(fields.name(name), heads, 1) for heads in given]
