"""Latent attention that looks at chosen tokens only: a small indexer scores all, and attention meets the best."""

from collections.abc import Sequence

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    read_experts,
    read_latent_attention,
    read_shared_experts,
    read_sparse,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part


def indexer(fields: Fields) -> list[Part]:
    """Scores every token before for every query: heads of their own, one key for all, and a weight for each head.

    It costs 2 * heads * (head_dim + 1) FLOPs a pair: a product for each head, and their weighted sum.
    Source: DeepSeek-AI, DeepSeek-V3.2-Exp, section 1 of its report.
    """
    d_model, rank = fields.size("hidden_size"), fields.size("q_lora_rank")
    heads, head_dim = fields.size("index_n_heads"), fields.size("index_head_dim")
    return [
        *linear("attention", rank, heads * head_dim),
        *linear("attention", d_model, head_dim),
        *norm(head_dim, bias=True),
        *linear("attention", d_model, heads),
        Attention(heads, head_dim, 1, head_dim),
    ]


def sparse_latent_attention(fields: Fields) -> list[Part]:
    """DeepSeek's latent attention to the index_topk best tokens."""
    return read_latent_attention(fields, query_rank=fields.size("q_lora_rank"), chosen=fields.size("index_topk"))


def gated_latent_attention(fields: Fields) -> list[Part]:
    """A.X-K2's: one projection makes queries and a gate for the values, from the latent before and after its norm."""
    rank, heads, value_dim = fields.size("q_lora_rank"), fields.size("num_attention_heads"), fields.size("v_head_dim")
    score_dim = fields.size("qk_nope_head_dim") + fields.size("qk_rope_head_dim")
    return [
        *sparse_latent_attention(fields),
        *linear("attention", rank, heads * score_dim),  # the other half of the wider input
        *linear("attention", 2 * rank, heads * value_dim),
    ]


def gated_norm(fields: Fields) -> list[Part]:
    """RMSNorm, times a gate that comes through a bottleneck of gated_norm_rank."""
    d_model, rank = fields.size("hidden_size"), fields.size("gated_norm_rank")
    gate = [*linear("norms", d_model, rank), *linear("norms", rank, d_model)]
    return [*norm(d_model), *gate]


def sparse_layers(fields: Fields, layers: int) -> list[bool]:
    """Which layers have experts; A.X-K2's older fields have a moe_layer_freq beside first_k_dense_replace."""
    light = fields.kind == "axk2"
    every = fields.size("moe_layer_freq", default=1) if light and not fields.values.get("mlp_layer_types") else 1
    sparse = read_sparse(fields, layers, dense_first=1 if light else 3)
    return [has and number % every == 0 for number, has in enumerate(sparse)]


def indexed_layers(fields: Fields, layers: int, *, every: int = 1, first: int = 0) -> Sequence[bool]:
    """Which layers have an indexer; the others take over the choice of the last one that has.

    ``every`` is the family's default for index_topk_freq, ``first`` the first layer that needs a choice.
    """
    kinds = fields.per_layer("indexer_types", layers, ("full", "shared"), default=None)
    if kinds is None and fields.get("index_topk_pattern", default=None) is not None:
        raise ValueError("index_topk_pattern is not read here; give indexer_types, 'full' or 'shared' for each layer")
    if kinds is None:
        every = max(fields.size("index_topk_freq", default=every, low=0), 1)
        offset = fields.size("index_skip_topk_offset", default=2, low=0)
        kinds = ["shared" if max(number - offset + 1, 0) % every else "full" for number in range(layers)]
    if kinds[first] == "shared":
        raise ValueError(
            f"{fields.name('indexer_types')} must have 'full' in layer {first}, since there is no choice to share yet"
        )
    return [kind == "full" for kind in kinds]


@family("deepseek_v32", "glm_moe_dsa", "axk2")
def sparse_attention(fields: Fields) -> Architecture:
    """DeepSeek-V3 with an indexer; A.X-K2 adds gates to the values, the first norm, and the norm before experts.

    Source: DeepSeek-AI, DeepSeek-V3.2-Exp; Zhipu AI, GLM-5; SK Telecom, A.X-K2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_experts", "num_local_experts")
    light = fields.kind == "axk2"
    attention = gated_latent_attention(fields) if light else sparse_latent_attention(fields)
    first = gated_norm(fields) if light else norm(d_model)
    feed_forward = {
        True: [
            *(gated_norm(fields) if light else norm(d_model)),
            *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
            *read_shared_experts(fields, "n_shared_experts"),
        ],
        False: [*norm(d_model), *mlp("dense_mlp", d_model, fields.size("intermediate_size"))],
    }
    index, which = indexer(fields), sparse_layers(fields, layers)
    indexed_by = indexed_layers(fields, layers) if fields.kind == "glm_moe_dsa" else [True] * layers
    blocks = [
        [*first, *attention, *(index if indexed else []), *feed_forward[sparse]]
        for indexed, sparse in zip(indexed_by, which, strict=True)
    ]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=sum(which),
        remarks=("the cache holds the latent vector of each token and the indexer's key, as the paper counts it",),
    )
