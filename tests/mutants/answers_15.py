"""Answers to the exercises of lesson 15: right ones, and wrong ones that must be refused with a reason."""

import moe_lab as ml
from moe_lab.capstone import Design

ARGUMENTS = {
    "15.2": "total, experts, num_experts, replicas, devices, cached, tokens, size",
    "15.3": "",
    "15.4": "",
}
BINDS = {
    "a": "memory_bytes",
    "b": "decode_ms",
    "c": "prefill_ms",
    "d": "memory_bytes",
    "e": "exchange_bytes",
    "f": "memory_bytes",
}


def holding(
    *,
    rest=lambda total, experts, devices: total - experts,
    share=lambda experts, num_experts, replicas, devices: (
        experts // num_experts * ((num_experts + replicas) // devices)
    ),
    cache=lambda cached, tokens, size, devices: cached * tokens * size,
):
    """Bytes on a device, with each of the three parts to replace."""

    def answer(total, experts, num_experts, replicas, devices, cached, tokens, size):
        weights = rest(total, experts, devices) + share(experts, num_experts, replicas, devices)
        return size * weights + cache(cached, tokens, size, devices)

    return answer


GPU = {"num_hidden_layers": 40, "num_key_value_heads": 2, "num_experts": 160, "moe_intermediate_size": 1024}
NODES = {
    "hidden_size": 3072,
    "num_hidden_layers": 60,
    "num_attention_heads": 48,
    "num_experts": 160,
    "moe_intermediate_size": 2432,
}
REPLICAS = {"devices": 16, "extra_experts": 32}


def for_gpu(config=None, **options):
    """A design for one GPU: the right sizes, some of them replaced."""
    config = {"vocab_size": 100_352, **GPU, **(config or {})}
    return lambda: Design({**ml.published("qwen3-30b-a3b").config, **config}, **options)


def for_nodes(config=None, **options):
    """A design for two nodes: the right sizes and 32 replicas, some of them replaced."""
    config = {"vocab_size": 129_280, **NODES, **(config or {})}
    return lambda: Design({**ml.published("qwen3-235b-a22b").config, **config}, **{**REPLICAS, **options})


BROKEN = ["no token dropped", "causal", "memory_bytes", "busiest_over_mean", "decode_ms"]
MENDED = {"method": "balanced_causal", "num_key_value_heads": 4}

RIGHT = {"15.1": BINDS, "15.2": holding(), "15.3": for_gpu(), "15.4": for_nodes(), "15.5": (BROKEN, MENDED)}


# ---------------------------------------------------------------- the same answers, differently written


def holding_by_places(total, experts, num_experts, replicas, devices, cached, tokens, size):
    """As if there were no devices, less what lies elsewhere, and more for the replicas here."""
    one = experts / num_experts
    elsewhere = num_experts - (num_experts + replicas) / devices
    return round((total - one * elsewhere + cached * tokens) * size)


def latent_for_gpu():
    """DeepSeek's small latent cache in place of fewer heads, with more layers and experts."""
    sizes = {"vocab_size": 100_352, "num_hidden_layers": 36, "n_routed_experts": 128}
    return Design({**ml.published("deepseek-v2-lite").config, **sizes})


ALSO_RIGHT = {
    "15.2": holding_by_places,
    "15.3": latent_for_gpu,
    "15.4": for_nodes(method="balanced_causal", extra_experts=0),
    "15.5": ({*BROKEN}, {"method": "balanced_causal", "num_key_value_heads": 3}),
}


# ---------------------------------------------------------------- wrong answers

WINDOW = {"use_sliding_window": True, "sliding_window": 512}

WRONG = {
    "15.1": {
        "more experts take longer": {**BINDS, "a": "decode_ms"},
        "more experts are more FLOPs": {**BINDS, "a": "flops_per_token"},
        "top-k is FLOPs": {**BINDS, "b": "flops_per_token"},
        "half the bytes, as fast": {**BINDS, "c": "memory_bytes"},
        "one GPU computes": {**BINDS, "d": "flops_per_token"},
        "busy experts": {**BINDS, "e": "busiest_over_mean"},
        "one node has no exchange, so nothing binds": {**BINDS, "f": "exchange_ms"},
        "letters are missing": {"a": "memory_bytes"},
        "no budget": {**BINDS, "b": "speed"},
        "always memory": dict.fromkeys("abcdef", "memory_bytes"),
    },
    "15.2": {
        "all experts everywhere": holding(share=lambda experts, num_experts, replicas, devices: experts),
        "everything is divided": holding(rest=lambda total, experts, devices: (total - experts) // devices),
        "experts counted twice": holding(rest=lambda total, experts, devices: total),
        "replicas are free": holding(share=lambda experts, num_experts, replicas, devices: experts // devices),
        "a replica on every device": holding(
            share=lambda experts, num_experts, replicas, devices: experts // devices + experts // num_experts * replicas
        ),
        "one layer's experts": holding(
            share=lambda experts, num_experts, replicas, devices: (num_experts + replicas) // devices
        ),
        "no cache": holding(cache=lambda cached, tokens, size, devices: 0),
        "the cache of one token": holding(cache=lambda cached, tokens, size, devices: cached * size),
        "a cache of two bytes a number": holding(cache=lambda cached, tokens, size, devices: 2 * cached * tokens),
        "the cache is divided again": holding(
            cache=lambda cached, tokens, size, devices: cached * tokens * size // devices
        ),
        "always bfloat16": lambda *given: holding()(*given[:-1], 2),
        "numbers, not bytes": lambda *given: holding()(*given[:-1], 1),
    },
    "15.3": {
        "as it was published": for_gpu({"num_hidden_layers": 48, "num_key_value_heads": 4}),
        "twice the experts": for_gpu({"num_experts": 320}),
        "half the width": for_gpu({"moe_intermediate_size": 512}),
        "twice top-k": for_gpu({"num_experts_per_tok": 16}),
        "twice the heads": for_gpu({"num_attention_heads": 64}),
        "float32": for_gpu(dtype="float32"),
        "a window for everything": for_gpu(WINDOW),
        "experts choose": for_gpu(method="expert_choice"),
        "places that overflow": for_gpu(method="capacity_top_k"),
        "another vocabulary": for_gpu({"vocab_size": 32_000}),
        "two devices": for_gpu(devices=2),
        "more chosen than there are": for_gpu({"num_experts_per_tok": 161}),
        "a config, no design": lambda: for_gpu()().config,
    },
    "15.4": {
        "no replicas": for_nodes(extra_experts=0),
        "one node": for_nodes(devices=8),
        "as wide as Qwen3-235B": for_nodes({"hidden_size": 4096, "moe_intermediate_size": 1824}),
        "deep and narrow": for_nodes({"num_hidden_layers": 120, "moe_intermediate_size": 1216}),
        "twice the experts": for_nodes({"num_experts": 320}),
        "half the width of experts": for_nodes({"moe_intermediate_size": 1216}),
        "twice top-k": for_nodes({"num_experts_per_tok": 16}),
        "limited to a node": for_nodes(method="group_limited", options={"num_groups": 2, "top_groups": 1}),
        "the batch decides": for_nodes(method="sinkhorn"),
        "places that overflow": for_nodes(method="capacity_top_k"),
        "a window for everything": for_nodes(WINDOW),
        "24 devices": for_nodes(devices=24),
        "12 devices": for_nodes(devices=12),
    },
    "15.5": {
        "only the router": (BROKEN[:2], MENDED),
        "no memory": ([name for name in BROKEN if name != "memory_bytes"], MENDED),
        "no slow decoding": ([name for name in BROKEN if name != "decode_ms"], MENDED),
        "drops look even": ([name for name in BROKEN if name != "busiest_over_mean"], MENDED),
        "causal enough": ([name for name in BROKEN if name != "causal"], MENDED),
        "drops are cheap": ([name for name in BROKEN if name != "no token dropped"], MENDED),
        "everything is broken": ([*BROKEN, "exchange_bytes", "flops_per_token"], MENDED),
        "mended by top-k": (BROKEN, {**MENDED, "method": "top_k"}),
        "the cache stays": (BROKEN, {"method": "balanced_causal"}),
        "half a cure": (BROKEN, {"method": "balanced_causal", "num_key_value_heads": 8}),
        "a third change": (BROKEN, {**MENDED, "extra_experts": 16}),
        "all anew": (BROKEN, {"config": {}}),
        "no changes": (BROKEN, {}),
        "names alone": BROKEN,
    },
}

HINT_NAMES = {"ml": ml, "Design": Design}
