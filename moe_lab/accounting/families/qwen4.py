"""Qwen4-Exp: Qwen3-Next with an indexer over blocks of tokens, gated streams, and tables for runs of words."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from math import isqrt

from moe_lab.accounting.blocks import linear, norm
from moe_lab.accounting.families.linear_attention import (
    gated_shared_expert,
    read_gated_attention,
    read_gated_delta_net,
)
from moe_lab.accounting.families.mamba import SCAN
from moe_lab.accounting.families.qwen_vl import qwen3_tower
from moe_lab.accounting.families.registry import decoder, family, layer_kinds, num_layers, read_experts
from moe_lab.accounting.families.vision import with_vision
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, State, Weight
from moe_lab.checks import check_whole


def gated_streams(fields: Fields, *, last: bool = False) -> list[Part]:
    """hc_count streams, mixed by gates that come through hc_lowrank; but for the last, also dealt out to again."""
    streams, rank = fields.size("hc_count", low=2), fields.size("hc_lowrank")
    width = streams * fields.size("hidden_size")
    return [
        *norm(width),
        *linear("norms", width, rank),
        *linear("norms", rank, width),
        *([] if last else linear("norms", width, streams)),
    ]


def block_indexer(fields: Fields) -> list[Part]:
    """Scores blocks of indexer_compress_ratio tokens by the mean of their keys."""
    heads, head_dim = fields.size("indexer_n_heads"), fields.size("indexer_head_dim")
    fields.choice("indexer_kv_heads", (1,))
    return [
        *linear("attention", fields.size("hidden_size"), (heads + 1) * head_dim),
        *norm(head_dim),
        *norm(head_dim),
        # value_dim 0: the sum over heads, of one number each, is taken elementwise
        Attention(heads, head_dim, 0, head_dim, every=fields.size("indexer_compress_ratio")),
    ]


def chosen_attention(fields: Fields) -> list[Part]:
    """Gated attention to the tokens of the best blocks, indexer_budget in all, and those of the block under way."""
    ratio, budget = fields.size("indexer_compress_ratio"), fields.size("indexer_budget")
    if budget % ratio:
        raise ValueError(f"indexer_compress_ratio must divide indexer_budget={budget}, got {ratio}")
    chosen = [
        replace(part, chosen=budget + ratio - 1) if isinstance(part, Attention) else part
        for part in read_gated_attention(fields)
    ]
    return [*chosen, *block_indexer(fields)]


def word_table(fields: Fields, number: int) -> list[Part]:
    """The ``number``-th layer with a table of rows for 2 to ngram_size words, which heads look up by hashes.

    A head has as many rows as a prime number, each another one, the first from ngram_vocab_size_base on. What is read
    gives a value, and a key for each stream; the gated values go through a convolution with gaps of ngram_size.
    """
    d_model, streams, words = (
        fields.size("hidden_size"),
        fields.size("hc_count", low=2),
        fields.size("ngram_size", low=2),
    )
    heads = (words - 1) * fields.size("heads_per_ngram")
    embedded, kernel = fields.size("ple_embed_dim", default=d_model), fields.size("ple_conv_kernel_size")
    if embedded % heads:
        raise ValueError(f"ple_embed_dim must be a multiple of {heads} heads, got {embedded}")
    base = fields.size("ngram_vocab_size_base", high=10**9)
    rows = sum(islice(primes(base), number * heads, (number + 1) * heads))
    unit = fields.size("make_ngram_vocab_size_divisible_by")
    width = streams * d_model
    return [
        Weight("embedding", (-(-rows // unit) * unit, embedded // heads), use="lookup"),
        *linear("recurrent", embedded, width),
        *linear("recurrent", embedded, d_model),
        *norm(width) * 3,
        Weight("recurrent", (width, kernel), kept=width),
        State(width * (kernel - 1) * words, 0),
    ]


def primes(start: int) -> Iterator[int]:
    """Prime numbers from ``start`` on.

    Example:
        >>> list(islice(primes(8), 3))
        [11, 13, 17]
    """
    return (n for n in count(max(start, 2)) if all(n % divisor for divisor in range(2, isqrt(n) + 1)))


@family("qwen4_exp_text")
def qwen4(fields: Fields) -> Architecture:
    """Gated DeltaNet, and in every full_attention_interval-th layer attention to chosen tokens; experts everywhere.

    Source: Qwen team 2026, Qwen4-Exp release.
    """
    layers = num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    interval = fields.size("full_attention_interval", default=4)
    words = ("linear_attention", "indexed_attention", "full_attention")
    kinds = layer_kinds(
        fields, layers, words, default=tuple(words[(number + 1) % interval == 0] for number in range(layers))
    )
    attends = [kind != "linear_attention" for kind in kinds]
    given = fields.entries("ple_layer_ids", default=[])
    tables = sorted({check_whole(fields.name("ple_layer_ids"), number, 1, layers) - 1 for number in given})
    if any(attends[number] for number in tables):
        raise ValueError(f"ple_layer_ids, which count from 1, must be layers of linear attention, got {given}")
    mixers = {False: read_gated_delta_net(fields), True: chosen_attention(fields) if any(attends) else []}
    rest = [*gated_streams(fields) * 2, *gated_shared_expert(fields, experts)]
    blocks = [
        [*rest, *mixers[attend], *(word_table(fields, tables.index(number)) if number in tables else [])]
        for number, attend in enumerate(attends)
    ]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=layers,
        last=gated_streams(fields, last=True),
        remarks=(*SCAN, "attention meets indexer_budget tokens and at most a block less one, which is what is counted"),
    )


@family("qwen4_exp")
def qwen4_exp(fields: Fields) -> Architecture:
    """The whole: the tower of Qwen3-VL without mergers in between.

    Source: Qwen team 2026, Qwen4-Exp release.
    """
    return with_vision(fields, qwen4, qwen3_tower(fields.inner("vision_config")), tied=False)
