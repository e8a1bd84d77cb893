"""Kimi Delta Attention beside latent attention: Kimi Linear, and Ant's Ling."""

from collections.abc import Sequence

from moe_lab.accounting.blocks import linear, mlp, routed_experts
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
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part
from moe_lab.accounting.recurrent import kimi_delta_attention
from moe_lab.checks import check_whole

WORDS = ("linear_attention", "full_attention")


@family("kimi_linear")
def kimi_linear(fields: Fields) -> Architecture:
    """Three layers of Kimi Delta Attention to one of latent attention; experts after the first layers.

    Source: Kimi Linear (arXiv:2510.26692), section 4.
    """
    layers = num_layers(fields)
    inner = _inner(fields)
    default = tuple(WORDS[number > 0 and number % 4 == 0] for number in range(layers))
    if inner.values.get("full_attn_layers") is not None and inner.values.get("kda_layers") is not None:
        default = _numbered(inner, layers)
    kinds = layer_kinds(fields, layers, WORDS, default=default)
    latent = _latent_attention(fields, fields.size("q_lora_rank", default=None))
    return _after_dense(fields, kinds, {"linear_attention": delta_attention(fields), "full_attention": latent})


@family("bailing_hybrid")
def bailing_hybrid(fields: Fields) -> Architecture:
    """Kimi Linear with full matrices for decay and gate, and a gate of one number a head on latent attention.

    Source: Ant Group 2026, Ling release; Kimi Linear (arXiv:2510.26692), section 3.
    """
    layers, d_model = num_layers(fields), fields.size("hidden_size")
    group = fields.size("layer_group_size", default=1 if fields.get("layer_types", default=None) else REQUIRED)
    kinds = layer_kinds(
        fields, layers, WORDS, default=tuple(WORDS[(number + 1) % group == 0] for number in range(layers))
    )
    delta = kimi_delta_attention(
        d_model,
        fields.size("linear_num_heads", "num_attention_heads"),
        # Transformers overwrites head_dim with the rotary one once it has read it.
        fields.size("linear_head_dim", "head_dim"),
        fields.size("linear_conv_kernel_dim", "short_conv_kernel_size"),
        rank=None,
    )
    latent = [*_latent_attention(fields, None), *linear("attention", d_model, fields.size("num_attention_heads"))]
    return _after_dense(fields, kinds, {"linear_attention": delta, "full_attention": latent})


def _numbered(inner: Fields, layers: int) -> tuple[str, ...]:
    """The kinds of layers from two lists of numbers, which count from 1 and leave none out."""
    full, delta = (
        [check_whole(inner.name(name), number, 1, layers) for number in inner.entries(name)]
        for name in ("full_attn_layers", "kda_layers")
    )
    if sorted([*full, *delta]) != list(range(1, layers + 1)):
        raise ValueError(f"{inner.name('kda_layers')} and full_attn_layers must name each of {layers} layers once")
    return tuple(WORDS[number in full] for number in range(1, layers + 1))


def _inner(fields: Fields) -> Fields:
    """The config within that older releases keep the linear layers in."""
    there = fields.get("linear_attn_config", default=None) is not None
    return fields.inner("linear_attn_config") if there else Fields({})


def delta_attention(fields: Fields) -> list[Part]:
    """Kimi Delta Attention, its sizes from the config within, or else from the one around it."""
    inner = _inner(fields)

    def size(name: str, outer: str) -> int:
        value = inner.size(name, default=None)
        return fields.size(outer) if value is None else value

    heads, width = size("num_heads", "linear_num_heads"), size("head_dim", "linear_head_dim")
    kernel = size("short_conv_kernel_size", "linear_conv_kernel_dim")
    return kimi_delta_attention(fields.size("hidden_size"), heads, width, kernel, rank=width)


def _latent_attention(fields: Fields, query_rank: int | None) -> list[Part]:
    heads = fields.size("num_attention_heads")
    fields.choice("num_key_value_heads", (heads,), null=heads)
    return read_latent_attention(fields, query_rank=query_rank)


def _after_dense(fields: Fields, kinds: Sequence[str], mixers: dict[str, list[Part]]) -> Architecture:
    """Dense layers as mlp_layer_types or first_k_dense_replace says, then routed experts beside shared ones."""
    d_model, layers = fields.size("hidden_size"), len(kinds)
    experts = read_experts(
        fields, "num_experts", "num_local_experts", top_k=("num_experts_per_token", "num_experts_per_tok")
    )
    fields.choice("moe_layer_freq", (1,), default=1)
    fields.refuse("tie_word_embeddings", "Transformers ties no weights of this family")
    which = read_sparse(fields, layers)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    shared = "num_shared_experts" if fields.get("num_shared_experts", default=None) is not None else "n_shared_experts"
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *read_shared_experts(fields, shared),
    ]
    blocks = [
        [*pre_norms(fields), *mixers[kind], *(sparse if has else dense)] for kind, has in zip(kinds, which, strict=True)
    ]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=sum(which),
        remarks=(*SCAN, "the cache holds the latent vector of each token, as the paper counts it"),
    )
