"""ZAYA: attention in a narrow space, with convolutions over queries and keys, and a router of several layers."""

from moe_lab.accounting.blocks import linear, mlp, norm
from moe_lab.accounting.families.registry import decoder, family, layer_kinds, num_layers, read_experts, read_heads
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, State, Weight


def convolved_attention(fields: Fields, window: int | None) -> list[Part]:
    """Compressed convolutional attention: fewer heads than the width has room for, and two convolutions along tokens.

    One filter a channel, then one that mixes the channels of each head; half of each value is the token's before.
    Source: Figliolia et al. 2025 (arXiv:2510.04476), section 3.
    """
    d_model = fields.size("hidden_size")
    heads, kv_heads, width = read_heads(fields, head_dim=REQUIRED)
    bias = fields.flag("attention_bias", False)
    first, second = fields.size("cca_time0"), fields.size("cca_time1")
    queries, keys = heads * width, kv_heads * width
    if keys % 2:
        raise ValueError(f"{fields.name('head_dim')} must be even, since a value is made of two halves; got {width}")
    channels = queries + keys
    return [
        *linear("attention", d_model, queries, bias=bias),
        *linear("attention", d_model, keys, bias=bias),
        *linear("attention", d_model, keys // 2, bias=bias),
        *linear("attention", d_model, keys // 2, bias=bias),
        Weight("attention", (channels, first), kept=channels),
        Weight("attention", (channels,), use="scale"),
        Weight("attention", (channels, width, second), kept=channels),
        Weight("attention", (channels,), use="scale"),
        State(channels * (first + second - 2) + keys // 2, 0, "attention"),
        Weight("attention", (kv_heads,), use="scale"),
        Attention(heads, width, width, 2 * keys, window=window),
        *linear("attention", queries, d_model, bias=bias),
    ]


def router(fields: Fields, num_experts: int, layer: int) -> list[Part]:
    """Three layers in a narrow space; what the router before had there comes in, scaled, in all layers but the first.

    One more output than there are experts: a token may skip them.
    """
    hidden = fields.size("router_hidden_size")
    return [
        *linear("router", fields.size("hidden_size"), hidden, bias=True),
        *([Weight("router", (hidden,), use="scale")] if layer else []),
        *norm(hidden),
        *linear("router", hidden, hidden, bias=True),
        *linear("router", hidden, hidden, bias=True),
        *linear("router", hidden, num_experts + 1),
    ]


@family("zaya")
def zaya(fields: Fields) -> Architecture:
    """Every layer has attention and experts, and scales and shifts both what it adds and what it adds it to.

    Source: Zyphra 2025, ZAYA1 (arXiv:2511.17127), section on the architecture.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    num_experts, top_k = read_experts(fields, "num_experts", "num_local_experts")
    fields.choice("num_experts_per_tok", (1,))
    kinds = layer_kinds(fields, layers, ("hybrid", "hybrid_sliding"), default=("hybrid",) * layers)
    scales = [Weight("norms", (d_model,), 2, use="scale"), Weight("norms", (d_model,), 2, use="scale")]
    blocks = [
        [
            *norm(d_model),
            *norm(d_model),
            *scales,
            *scales,
            *convolved_attention(fields, fields.size("sliding_window") if kind == "hybrid_sliding" else None),
            *router(fields, num_experts, number),
            *mlp("experts", d_model, fields.size("moe_intermediate_size"), copies=num_experts, used=top_k),
        ]
        for number, kind in enumerate(kinds)
    ]
    return decoder(
        fields,
        blocks,
        experts=(num_experts, top_k),
        moe_layers=layers,
        tied=True,
        output_bias=fields.flag("lm_head_bias", False),
        more=[Weight("norms", (d_model,), 2, use="scale")],
        remarks=("active parameters and FLOPs are those of a token that does not skip the experts",),
    )
