"""The building blocks that families share, each as the parts that it is made of."""

from moe_lab.accounting.parts import Attention, Part, Weight


def linear(
    component: str, d_in: int, d_out: int, *, bias: bool = False, copies: int = 1, used: int | None = None, kept=None
) -> list[Part]:
    """A linear layer: d_in * d_out weights, which multiply; d_out more for a bias, which is added.

    Example:
        >>> sum(part.params for part in linear("attention", 3, 5, bias=True))
        20
    """
    kept = d_out if kept is None else kept
    weights: list[Part] = [Weight(component, (d_out, d_in), copies, used, kept=kept)]
    if bias:
        weights.append(Weight(component, (d_out,), copies, used, use="scale"))
    return weights


def norm(width: int, *, bias: bool = False, component: str = "norms") -> list[Part]:
    """RMSNorm, one scale a channel; with ``bias`` LayerNorm, which adds a shift."""
    return [Weight(component, (width,), 2 if bias else 1, use="scale", kept=width)]


def embedding(vocab_size: int, width: int) -> list[Part]:
    """A row for each word of the vocabulary, of which a token reads one."""
    return [Weight("embedding", (vocab_size, width), use="lookup")]


def output(vocab_size: int, width: int, *, tied: bool, bias: bool = False) -> list[Part]:
    """The projection onto the vocabulary; a tied one is the embedding again, multiplied and not stored twice."""
    logits: list[Part] = [Weight("output", (vocab_size, width), stored=not tied, kept=vocab_size)]
    if bias:
        logits.append(Weight("output", (vocab_size,), use="scale"))
    return logits


def grouped_query_attention(
    d_model: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    value_dim: int | None = None,
    window: int | None = None,
    causal: bool = True,
) -> list[Part]:
    """Attention whose queries share keys and values in groups; kv_heads = heads is the attention of every head.

    Weights: d*heads*head_dim for the queries, d*kv_heads*(head_dim + value_dim) for keys and values,
    heads*value_dim*d for the output. A token caches kv_heads*(head_dim + value_dim) numbers.
    Source: Ainslie et al. 2023 (arXiv:2305.13245), section 2.
    """
    value_dim = head_dim if value_dim is None else value_dim
    return [
        *linear("attention", d_model, heads * head_dim, bias=qkv_bias),
        *linear("attention", d_model, kv_heads * head_dim, bias=qkv_bias),
        *linear("attention", d_model, kv_heads * value_dim, bias=qkv_bias),
        *linear("attention", heads * value_dim, d_model, bias=output_bias),
        Attention(heads, head_dim, value_dim, kv_heads * (head_dim + value_dim), window=window, causal=causal),
    ]


def latent_attention(
    d_model: int,
    heads: int,
    *,
    query_rank: int | None,
    latent_rank: int,
    nope_dim: int,
    rope_dim: int,
    value_dim: int,
    bias: bool = False,
    chosen: int | None = None,
) -> list[Part]:
    """Multi-head latent attention: keys and values are made from one small latent vector, which is all that is cached.

    Queries come through a bottleneck of ``query_rank``, or straight where that is None, and meet all keys or the
    ``chosen`` best. A token caches latent_rank +
    rope_dim numbers (Transformers' own cache holds the keys and values made from them, which is more).
    Source: DeepSeek-V2 (arXiv:2405.04434), section 2.1 and appendix C.
    """
    score_dim = nope_dim + rope_dim
    queries = (
        linear("attention", d_model, heads * score_dim)
        if query_rank is None
        else [
            *linear("attention", d_model, query_rank, bias=bias),
            *norm(query_rank),
            *linear("attention", query_rank, heads * score_dim),
        ]
    )
    return [
        *queries,
        *linear("attention", d_model, latent_rank + rope_dim, bias=bias),
        *norm(latent_rank),
        *linear("attention", latent_rank, heads * (nope_dim + value_dim)),
        *linear("attention", heads * value_dim, d_model, bias=bias),
        Attention(heads, score_dim, value_dim, latent_rank + rope_dim, chosen=chosen),
    ]


def mlp(
    component: str,
    d_model: int,
    hidden: int,
    *,
    gated: bool = True,
    bias: bool = False,
    copies: int = 1,
    used: int | None = None,
) -> list[Part]:
    """A feed-forward network: 2 matrices d*hidden, or 3 where a gate multiplies (SwiGLU).

    ``copies`` of it with ``used`` = top_k are the routed experts of a layer.
    Source: Shazeer 2020 (arXiv:2002.05202), section 2.
    """
    up = hidden * (2 if gated else 1)
    return [
        *linear(component, d_model, up, bias=bias, copies=copies, used=used, kept=up + hidden),
        *linear(component, hidden, d_model, bias=bias, copies=copies, used=used),
    ]


def routed_experts(
    d_model: int,
    d_expert: int,
    num_experts: int,
    top_k: int,
    *,
    gated: bool = True,
    bias: bool = False,
    router_bias: bool = False,
) -> list[Part]:
    """A layer's router and its experts: num_experts scores, and num_experts networks, of which a token uses top_k.

    Example:
        >>> parts = routed_experts(d_model=4, d_expert=8, num_experts=6, top_k=2)
        >>> [sum(part.active_params for part in parts), sum(part.params for part in parts)]
        [216, 600]
    """
    return [
        *linear("router", d_model, num_experts, bias=router_bias),
        *mlp("experts", d_model, d_expert, gated=gated, bias=bias, copies=num_experts, used=top_k),
    ]
