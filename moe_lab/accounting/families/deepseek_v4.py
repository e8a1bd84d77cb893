"""DeepSeek-V4: a short window, and beyond it blocks of tokens put into one key each; four streams between layers."""

from dataclasses import replace

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import decoder, family, num_layers, read_experts
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, State, Weight

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"


def window_attention(fields: Fields) -> list[Part]:
    """One vector a token is key and value of all heads; the output comes through o_groups small projections."""
    d_model, rank, heads = fields.size("hidden_size"), fields.size("q_lora_rank"), fields.size("num_attention_heads")
    head_dim, groups, out_rank = fields.size("head_dim"), fields.size("o_groups"), fields.size("o_lora_rank")
    if heads * head_dim % groups:
        raise ValueError(f"{fields.name('o_groups')} must divide heads * head_dim = {heads * head_dim}, got {groups}")
    return [
        *linear("attention", d_model, rank),
        *norm(rank),
        *linear("attention", rank, heads * head_dim),
        *linear("attention", d_model, head_dim),
        *norm(head_dim),
        *linear("attention", heads * head_dim // groups, out_rank, copies=groups),
        *linear("attention", groups * out_rank, d_model),
        Weight("attention", (heads,), use="scale"),
        Attention(heads, head_dim, head_dim, head_dim, window=fields.size("sliding_window")),
    ]


def compressor(fields: Fields, rate: int, head_dim: int, *, overlap: bool) -> list[Part]:
    """Puts ``rate`` tokens into one vector by gates; with ``overlap`` it joins the block before, by more vectors."""
    width = head_dim * (2 if overlap else 1)
    return [
        *linear("attention", fields.size("hidden_size"), 2 * width),
        Weight("attention", (rate, width), use="scale"),
        *norm(head_dim),
    ]


def compressed_attention(fields: Fields, kind: str) -> list[Part]:
    """What a layer has besides its window: all blocks of many tokens, or the index_topk best of many small blocks."""
    if kind == SLIDING:
        return []
    sparse, head_dim = kind == SPARSE, fields.size("head_dim")
    rate = compress_rate(fields, kind)
    heads = fields.size("num_attention_heads")
    far = Attention(heads, head_dim, head_dim, head_dim, every=rate)
    parts = compressor(fields, rate, head_dim, overlap=sparse)
    if not sparse:
        return [*parts, far]
    index_heads, index_dim = fields.size("index_n_heads"), fields.size("index_head_dim")
    return [
        *parts,
        replace(far, chosen=fields.size("index_topk")),
        *compressor(fields, rate, index_dim, overlap=True),
        *linear("attention", fields.size("q_lora_rank"), index_heads * index_dim),
        *linear("attention", fields.size("hidden_size"), index_heads),
        # value_dim 0: the sum over heads, of one number each, is taken elementwise
        Attention(index_heads, index_dim, 0, index_dim, every=rate),
    ]


def compress_rate(fields: Fields, kind: str) -> int:
    """How many tokens make one key, under today's name or the older one."""
    old = {SPARSE: "compress_rate_csa", HEAVY: "compress_rate_hca"}[kind]
    if fields.get(old, default=None) is not None or fields.get("compress_rates", default=None) is None:
        return fields.size(old, default={SPARSE: 4, HEAVY: 128}[kind])
    return fields.inner("compress_rates").size(kind)


def hyper_connections(streams: int, d_model: int, *, last: bool = False) -> list[Part]:
    """What mixes the streams before and after a block: weights made from all of them, and their product with them.

    The ``last`` one only sums the streams up.
    """
    mixed = streams if last else (2 + streams) * streams
    parts: list[Part] = [
        *linear("norms", streams * d_model, mixed),
        Weight("norms", (mixed,), use="scale"),
        Weight("norms", (1 if last else 3,), use="scale"),
    ]
    return parts if last else [*parts, State(0, 2 * streams * streams * d_model, component="norms")]


@family("deepseek_v4")
def deepseek_v4(fields: Fields) -> Architecture:
    """Every layer has experts; the first ones choose them by the token alone, from a table that is no parameter.

    Source: DeepSeek-AI, DeepSeek-V4.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_experts", "num_local_experts")
    d_expert, streams = fields.size("moe_intermediate_size", "intermediate_size"), fields.size("hc_mult")
    fields.choice("n_shared_experts", (1,), default=1)
    rest = [
        *norm(d_model),
        *norm(d_model),
        *hyper_connections(streams, d_model) * 2,
        *window_attention(fields),
        *routed_experts(d_model, d_expert, *experts),
        *mlp("shared_experts", d_model, d_expert, bias=fields.flag("mlp_bias", False)),
    ]
    blocks = [[*rest, *compressed_attention(fields, kind)] for kind in layer_types(fields, layers)]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=layers,
        more=hyper_connections(streams, d_model, last=True),
        remarks=("the cache holds whole blocks; the tokens of the block that is not full yet come on top",),
    )


def layer_types(fields: Fields, layers: int) -> list[str]:
    """The attention of each layer, by layer_types, or compress_ratios as the releases have it, or the usual pattern."""
    if fields.get("layer_types", default=None) is not None:
        return fields.per_layer("layer_types", layers, (SLIDING, SPARSE, HEAVY))
    ratios = fields.entries("compress_ratios", default=None)
    if ratios is None:
        return [SPARSE if number >= 2 and number % 2 else HEAVY for number in range(layers)]
    known = {0: SLIDING, 4: SPARSE, 128: HEAVY}
    if len(ratios) < layers or any(ratio not in known for ratio in ratios[:layers]):
        raise ValueError(f"{fields.name('compress_ratios')} must have 0, 4 or 128 for each of {layers} layers")
    return [known[ratio] for ratio in ratios[:layers]]
