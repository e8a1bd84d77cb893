"""Encoder-decoders: one stack reads a sequence, another writes one and looks at what the first made of it."""

from moe_lab.accounting.blocks import embedding, linear, mlp, norm, output, routed_experts
from moe_lab.accounting.families.registry import family, num_layers
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, Weight, on_stream


def self_attention(d_model: int, heads: int, head_dim: int, *, decoding: bool, bias: bool = False) -> list[Part]:
    """Attention of a stack to its own tokens; only the decoder's is causal, and cached."""
    inner = heads * head_dim
    return [
        *linear("attention", d_model, 3 * inner, bias=bias),
        *linear("attention", inner, d_model, bias=bias),
        Attention(heads, head_dim, head_dim, 2 * inner if decoding else 0, causal=decoding),
    ]


def cross_attention(d_model: int, heads: int, head_dim: int, *, bias: bool = False) -> list[Part]:
    """Attention of the decoder to the encoder's tokens, from which keys and values are made."""
    inner = heads * head_dim
    return [
        *linear("attention", d_model, inner, bias=bias),
        *on_stream(linear("attention", d_model, 2 * inner, bias=bias), "encoder"),
        *linear("attention", inner, d_model, bias=bias),
        Attention(heads, head_dim, head_dim, 2 * inner, causal=False, queries="decoder", keys="encoder"),
    ]


def both(
    fields: Fields, encoder: list[Part], decoder: list[Part], *, layers: int, moe_layers: int, experts
) -> Architecture:
    """One embedding for both stacks, and the projection onto the vocabulary after the decoder."""
    d_model, vocab_size = fields.size("d_model", "hidden_size"), fields.size("vocab_size")
    written = [
        part if getattr(part, "stream", "") == "encoder" else moved
        for part, moved in zip(decoder, on_stream(decoder, "decoder"), strict=True)
    ]
    logits = on_stream(output(vocab_size, d_model, tied=fields.flag("tie_word_embeddings", True)), "decoder")
    parts = [*embedding(vocab_size, d_model), *on_stream(encoder, "encoder"), *written, *logits]
    return Architecture(str(fields.kind), tuple(parts), d_model, layers, moe_layers, *experts)


@family("switch_transformers")
def switch_transformers(fields: Fields) -> Architecture:
    """T5 whose every sparse_step-th feed-forward network is experts of its own size, of which a token uses one.

    The relative positions of a stack are one table, a number for each head and distance, which its first layer has.
    Source: Fedus et al. 2021 (arXiv:2101.03961), section 2; Raffel et al. 2019 (arXiv:1910.10683), section 2.1.
    """
    d_model, d_ff = fields.size("d_model", "hidden_size"), fields.size("d_ff")
    heads, head_dim = fields.size("num_heads", "num_attention_heads"), fields.size("d_kv")
    layers = num_layers(fields, "num_layers", "num_hidden_layers")
    experts = fields.size("num_experts"), 1
    activation = fields.get("dense_act_fn", default="relu")
    if not isinstance(activation, str):
        raise TypeError(f"{fields.name('dense_act_fn')} must be the name of an activation, got {activation!r}")
    gated = activation.startswith("gated-")
    dense = [*mlp("dense_mlp", d_model, d_ff, gated=gated), *norm(d_model)]
    sparse = [
        *routed_experts(d_model, d_ff, *experts, gated=gated, router_bias=fields.flag("router_bias", False)),
        *norm(d_model),
    ]
    stacks, moe_layers = [], 0
    read = fields.get("num_decoder_layers", null=None) is None
    written = layers if read else num_layers(fields, "num_decoder_layers")
    for name, depth in (("encoder", layers), ("decoder", written)):
        which = sparse_layers(fields, name, depth)
        looks = [*cross_attention(d_model, heads, head_dim), *norm(d_model)] if name == "decoder" else []
        attention = [*self_attention(d_model, heads, head_dim, decoding=name == "decoder"), *norm(d_model), *looks]
        table = Weight("attention", (fields.size("relative_attention_num_buckets"), heads), use="scale")
        blocks = [part for has in which for part in (*attention, *(sparse if has else dense))]
        stacks.append([table, *blocks, *norm(d_model)])
        moe_layers += sum(which)
    return both(fields, *stacks, layers=layers + written, moe_layers=moe_layers, experts=experts)


def sparse_layers(fields: Fields, stack: str, layers: int) -> list[bool]:
    """Which layers of a stack have experts: the second of each sparse_step, as Transformers derives it."""
    step = fields.size(f"{stack}_sparse_step", default=None, low=0)
    if step is None:
        sparse = fields.size(f"num_sparse_{stack}_layers", low=0)
        step = layers // sparse if sparse else layers
    return [step > 0 and (step == 1 or number % step == 1) for number in range(layers)]


@family("nllb-moe")
def nllb_moe(fields: Fields) -> Architecture:
    """Every sparse_step-th layer of both stacks has experts, of which a token uses two; biases everywhere.

    Source: NLLB Team 2022 (arXiv:2207.04672), section 6.2.
    """
    d_model = fields.size("d_model", "hidden_size")
    experts = fields.size("num_experts", low=2), 2
    stacks, depths, moe_layers = [], [], 0
    for name in ("encoder", "decoder"):
        layers, heads = num_layers(fields, f"{name}_layers"), fields.size(f"{name}_attention_heads")
        if d_model % heads:
            raise ValueError(f"{name}_attention_heads must divide d_model={d_model}, got {heads}")
        sizes, d_ff = (d_model, heads, d_model // heads), fields.size(f"{name}_ffn_dim")
        looks = [*cross_attention(*sizes, bias=True), *norm(d_model, bias=True)] if name == "decoder" else []
        attention = [*self_attention(*sizes, decoding=name == "decoder", bias=True), *norm(d_model, bias=True), *looks]
        step = fields.size(f"{name}_sparse_step", low=0)
        which = [step > 0 and (number + 1) % step == 0 for number in range(layers)]
        dense = mlp("dense_mlp", d_model, d_ff, gated=False, bias=True)
        router_bias = fields.flag("router_bias", False)
        sparse = routed_experts(d_model, d_ff, *experts, gated=False, bias=True, router_bias=router_bias)
        blocks = [
            part for has in which for part in (*attention, *(sparse if has else dense), *norm(d_model, bias=True))
        ]
        stacks.append([*blocks, *norm(d_model, bias=True)])
        depths.append(layers)
        moe_layers += sum(which)
    return both(fields, *stacks, layers=sum(depths), moe_layers=moe_layers, experts=experts)
