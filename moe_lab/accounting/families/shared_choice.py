"""Latent attention to chosen tokens in the newer mixtures: choices shared by layers, streams, gates, pooled keys."""

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.deepseek_v4 import hyper_connections
from moe_lab.accounting.families.kimi_linear import delta_attention
from moe_lab.accounting.families.mamba import SCAN
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    layer_kinds,
    num_layers,
    pre_norms,
    read_experts,
    read_latent_attention,
    read_shared_experts,
    read_sparse,
)
from moe_lab.accounting.families.sparse_attention import indexed_layers, indexer, sparse_latent_attention
from moe_lab.accounting.families.vision import text_only
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, Weight

CACHE = "the cache holds the latent vector of each token and the indexer's key"


def feed_forward(fields: Fields, experts: tuple[int, int]) -> dict[bool, list[Part]]:
    """A layer's network, by whether it has experts."""
    d_model = fields.size("hidden_size")
    return {
        True: [
            *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
            *read_shared_experts(fields, "n_shared_experts"),
        ],
        False: mlp("dense_mlp", d_model, fields.size("intermediate_size")),
    }


def independent_connections(streams: int, d_model: int) -> list[Part]:
    """What sums the streams up before a block and deals its output out after it; the streams themselves stay apart."""
    return [
        *linear("norms", streams * d_model, 2 * streams),
        Weight("norms", (2 * streams,), use="scale"),
        Weight("norms", (2,), use="scale"),
    ]


@family("hy_v4")
def hy_v4(fields: Fields) -> Architecture:
    """An indexer in every fourth layer, a gate as wide as the values, a sink for each head, hc_mult streams.

    Source: Tencent 2026, Hunyuan release (Hy4).
    """
    d_model, layers, streams = fields.size("hidden_size"), num_layers(fields), fields.size("hc_mult")
    experts = read_experts(fields, "n_routed_experts", "num_local_experts", "num_experts")
    layer_kinds(fields, layers, ("indexed_attention",), default=("indexed_attention",) * layers)
    heads = fields.size("num_attention_heads")
    rest = [
        *pre_norms(fields),
        *independent_connections(streams, d_model) * 2,
        *sparse_latent_attention(fields),
        *linear("attention", d_model, heads * fields.size("v_head_dim")),
        Weight("attention", (heads,), use="scale"),
    ]
    index, networks = indexer(fields), feed_forward(fields, experts)
    which = read_sparse(fields, layers, dense_first=1)
    blocks = [
        [*rest, *(index if indexed else []), *networks[sparse]]
        for indexed, sparse in zip(indexed_layers(fields, layers, every=4), which, strict=True)
    ]
    last = hyper_connections(streams, d_model, last=True)
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), more=last, remarks=(CACHE,))


def pooled_indexer(fields: Fields) -> list[Part]:
    """An indexer whose keys are pools of index_kpool tokens, summed by gates that each token makes."""
    d_model, rank, pool = fields.size("hidden_size"), fields.size("q_lora_rank"), fields.size("index_kpool")
    heads, head_dim = fields.size("index_n_heads"), fields.size("index_head_dim")
    return [
        *linear("attention", rank, heads * head_dim),
        *linear("attention", d_model, head_dim),
        *norm(head_dim, bias=True),
        *linear("attention", d_model, heads),
        Weight("attention", (pool, head_dim), use="scale"),
        *linear("attention", d_model, head_dim),
        Attention(heads, head_dim, 1, head_dim, every=pool),
    ]


@family("glm5_next_text")
def glm5_next(fields: Fields) -> Architecture:
    """Three layers of Kimi Delta Attention to one of latent attention to chosen pools of tokens; hc_mult streams.

    Source: Zhipu AI 2026, GLM-5.3-Flash release.
    """
    d_model, layers, streams = fields.size("hidden_size"), num_layers(fields), fields.size("hc_mult")
    experts = read_experts(fields, "n_routed_experts", "num_local_experts", "num_experts")
    words = ("linear_attention", "full_attention", "indexed_attention")
    kinds = layer_kinds(fields, layers, words, default=tuple(words[2 * (number % 4 == 3)] for number in range(layers)))
    attends = [kind != "linear_attention" for kind in kinds]
    pool, budget, heads = fields.size("index_kpool"), fields.size("index_topk"), fields.size("num_attention_heads")
    if budget % pool:
        raise ValueError(f"index_kpool must divide index_topk={budget}, got {pool}")
    fields.choice("num_key_value_heads", (heads,), null=heads)
    tail = pool - 1 if fields.flag("index_kpool_always_select_tail", True) else 0
    latent = read_latent_attention(
        fields,
        query_rank=fields.size("q_lora_rank"),
        rope_dim=fields.size("qk_rope_head_dim", default=0, low=0, high=0),
        chosen=budget + tail,
    )
    delta, index, networks = delta_attention(fields), pooled_indexer(fields), feed_forward(fields, experts)
    which = read_sparse(fields, layers, dense_first=min(3, layers))
    first = attends.index(True) if True in attends else 0
    indexed = indexed_layers(fields, layers, first=first) if True in attends else [False] * layers
    blocks = []
    for attend, has_index, sparse in zip(attends, indexed, which, strict=True):
        mixer = [*latent, *(index if has_index else [])] if attend else delta
        streams_mixed = hyper_connections(streams, d_model) * 2
        blocks.append([*pre_norms(fields), *streams_mixed, *mixer, *networks[sparse]])
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=sum(which),
        remarks=(
            *SCAN,
            CACHE,
            "attention meets index_topk tokens and at most a pool less one, which is what is counted",
        ),
    )


@family("mistral_large4_text")
def mistral_large4(fields: Fields) -> Architecture:
    """Latent attention without a bottleneck for queries; layers may take over the choice, and the latents, of others.

    Source: Mistral AI 2026, Mistral Large 4 release.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "n_routed_experts", "num_local_experts")
    layer_kinds(fields, layers, ("indexed_attention",), default=("indexed_attention",) * layers)
    heads = fields.size("num_attention_heads")
    fields.choice("num_key_value_heads", (heads,), null=heads)
    networks, which = feed_forward(fields, experts), read_sparse(fields, layers)
    index_heads, index_dim = fields.size("index_n_heads"), fields.size("index_head_dim")
    index = [
        *norm(d_model, bias=True),
        *linear("attention", d_model, index_heads * index_dim),
        *linear("attention", d_model, index_dim),
        *norm(index_dim, bias=True),
        *linear("attention", d_model, index_heads),
        Weight("attention", (index_heads,), 2, use="scale"),
        Attention(index_heads, index_dim, 1, index_dim),
    ]
    sources = fields.layer_numbers("kv_source_layers", layers, default=list(range(layers)))
    if len(sources) != layers:
        raise ValueError(f"kv_source_layers must have one entry for each of {layers} layers, got {len(sources)}")
    interval = fields.size("no_rope_layer_interval", default=4)
    turned = fields.entries("no_rope_layers", default=[int((n + 1) % interval != 0) for n in range(layers)])
    if len(turned) != layers or any(turn not in (0, 1) for turn in turned):
        raise ValueError(f"no_rope_layers must have 0 or 1 for each of {layers} layers")
    blocks = []
    indexed = indexed_layers(fields, layers)
    for number, (has_index, sparse) in enumerate(zip(indexed, which, strict=True)):
        attention = mistral_attention(fields, turns=bool(turned[number]), own=sources[number] == number)
        blocks.append([*pre_norms(fields), *attention, *(index if has_index else []), *networks[sparse]])
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), remarks=(CACHE,))


def mistral_attention(fields: Fields, *, turns: bool, own: bool) -> list[Part]:
    """Latent attention with or without rotary parts, with latents of its own or with another layer's."""
    d_model, heads, rank = fields.size("hidden_size"), fields.size("num_attention_heads"), fields.size("kv_lora_rank")
    nope_dim, rope_dim = fields.size("qk_nope_head_dim"), fields.size("qk_rope_head_dim")
    value_dim, bias = fields.size("v_head_dim"), fields.flag("attention_bias", False)
    score_dim, shared_dim = nope_dim + rope_dim, rope_dim if turns else 0
    latent = [*linear("attention", d_model, rank + shared_dim, bias=bias), *norm(rank)]
    return [
        *linear("attention", d_model, heads * score_dim),
        Weight("attention", (heads,), 2, use="scale"),
        *(latent if own else []),
        *linear("attention", rank, heads * (score_dim - shared_dim + value_dim)),
        *linear("attention", heads * value_dim, d_model, bias=bias),
        Attention(heads, score_dim, value_dim, rank + shared_dim if own else 0, chosen=fields.size("index_topk")),
    ]


for whole in ("glm5_next", "mistral_large4"):
    family(whole)(text_only("vision_config", "its tower is of a kind of its own"))
