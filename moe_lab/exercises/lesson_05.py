"""Exercises of lesson 05: active parameters, the FLOPs of a step, a publisher's convention, and utilisation."""

import random

import torch

from moe_lab.accounting.counter import flop_counter
from moe_lab.accounting.counts import count
from moe_lab.accounting.layer import PassFlops, layer_flops, router_flops
from moe_lab.exercises import Exercise, Property
from moe_lab.layers import MoE
from moe_lab.models import EMBEDDINGS, published

# ---------------------------------------------------------------- 05.1: active parameters

_TINY = {
    "model_type": "mixtral",
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "num_local_experts": 3,
    "num_experts_per_tok": 1,
    "tie_word_embeddings": False,
}


def _random_config(seed: int) -> dict[str, object]:
    """Sizes that divide nothing, with any number of experts, heads and layers."""
    draw = random.Random(seed)
    kv_heads, experts = draw.randint(1, 4), draw.randint(1, 9)
    return _TINY | {
        "vocab_size": draw.randint(1, 500),
        "hidden_size": draw.randint(1, 60),
        "intermediate_size": draw.randint(1, 60),
        "num_hidden_layers": draw.randint(1, 5),
        "num_attention_heads": kv_heads * draw.randint(1, 4),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw.randint(1, 8),
        "num_local_experts": experts,
        "num_experts_per_tok": draw.randint(1, experts),
        "tie_word_embeddings": draw.random() < 0.5,
    }


def _differs(yours: object, spec: int, case: str) -> str | None:
    """None if two whole numbers are equal, else both."""
    return None if yours == spec else f"yours {yours:,}, spec {spec:,} for {case}"


def _uses(config: dict, case: str) -> Property:
    return lambda answer: _differs(answer(dict(config)), count(config).active_params, case)


def _uses_what_it_stores(answer) -> str | None:
    config = _random_config(1) | {"num_local_experts": 5, "num_experts_per_tok": 5}
    return _differs(answer(dict(config)), count(config).total_params, "top_k = num_experts, where all is active")


def _idle_experts_add_a_row(answer) -> str | None:
    config = _random_config(2) | {"num_local_experts": 4, "num_experts_per_tok": 2}
    more = config | {"num_local_experts": 8}
    added = config["num_hidden_layers"] * config["hidden_size"] * 4
    return _differs(answer(more) - answer(config), added, "4 experts more in each layer: their rows of the router")


def _any_config(answer) -> str | None:
    for seed in range(10, 50):
        config = _random_config(seed)
        fault = _uses(config, str({key: value for key, value in config.items() if key != "model_type"}))(answer)
        if fault is not None:
            return fault
    return None


# ---------------------------------------------------------------- 05.2: FLOPs of a step


def _step(
    tokens: int, d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared: int, router_frozen: bool
) -> tuple[int, int]:
    """The closed forms of the library."""
    flops = layer_flops(tokens, d_model, d_expert, num_experts, top_k, num_shared)
    flops["router"] = router_flops(tokens, d_model, num_experts, weight_grad=not router_frozen)
    both = sum(flops.values(), PassFlops())
    return both.forward, both.backward


def _as_pair(answer, sizes: tuple) -> tuple[int, int] | str:
    """The answer's two numbers, or what is wrong with them."""
    yours = answer(*sizes)
    if not isinstance(yours, tuple | list) or len(yours) != 2:
        return f"yours is {yours!r}, spec two numbers, forward and backward"
    return yours[0], yours[1]


def _compare_steps(yours: tuple[int, int] | str, spec: tuple[int, int], case: str) -> str | None:
    if isinstance(yours, str):
        return yours
    for name, one, other in zip(("forward", "backward"), yours, spec, strict=True):
        if one != other:
            return f"{name}: yours {one:,}, spec {other:,} for {case}"
    return None


def _costs(*sizes: int) -> Property:
    names = ("tokens", "d_model", "d_expert", "num_experts", "top_k", "num_shared", "router_frozen")
    case = ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    return lambda answer: _compare_steps(_as_pair(answer, sizes), _step(*sizes), case)


def _counted(seed: int) -> Property:
    """What the counter sees while a layer of random sizes runs, forward and backward."""

    def holds(answer) -> str | None:
        draw = random.Random(seed)
        tokens, d_model, d_expert, experts = (draw.randint(2, 9) for _ in range(4))
        top_k, shared, frozen = draw.randint(1, experts), draw.randint(0, 3), bool(seed % 2)
        layer = MoE(d_model, d_expert, experts, top_k, num_shared=shared, backend="loop")
        layer.router.requires_grad_(not frozen)
        x = torch.randn(tokens, d_model, requires_grad=True)
        with flop_counter() as forward:
            y = layer(x)
        with flop_counter() as backward:
            y.sum().backward()
        sizes = (tokens, d_model, d_expert, experts, top_k, shared, frozen)
        return _compare_steps(
            _as_pair(answer, sizes), (forward.total_flops, backward.total_flops), f"a layer that ran with {sizes}"
        )

    return holds


# ---------------------------------------------------------------- 05.3: the convention


def _conventions(config: dict, active_params: int, step: int) -> list[str]:
    counts = {name: count(config, embeddings=name).active_params for name in EMBEDDINGS}
    return [name for name, ours in counts.items() if 2 * abs(ours - active_params) <= step]


def _fits(config: dict, active_params: int, step: int, case: str) -> Property:
    def holds(answer) -> str | None:
        yours, spec = list(answer(dict(config), active_params, step)), _conventions(config, active_params, step)
        return None if yours == spec else f"yours {yours}, spec {spec} for {case}"

    return holds


def _publishers(slug: str) -> Property:
    model = published(slug)
    case = f"{model.name}, {model.active_params:,} in steps of {model.precision['active_params']:,}"
    return _fits(model.config, model.active_params, model.precision["active_params"], case)


def _at_the_edge(answer) -> str | None:
    """Half a unit of the last digit still rounds to the figure; one parameter more does not."""
    config = _TINY | {"vocab_size": 1000}
    ours = count(config, embeddings="both").active_params
    for away, spec in ((500, ["both"]), (-500, ["both"]), (501, [])):
        yours = list(answer(dict(config), ours + away, 1000))
        if yours != spec:
            return f"a figure {away:+} from the count with both, in steps of 1,000: yours {yours}, spec {spec}"
    return None


# ---------------------------------------------------------------- 05.4: utilisation


def _utilisation(config: dict, tokens: int, sequences_per_s: float, num_devices: int, peak_flops: float) -> float:
    return 3 * count(config).flops_per_sequence(tokens) * sequences_per_s / (num_devices * peak_flops)


def _busy(
    config: dict, tokens: int, sequences_per_s: float, num_devices: int, peak_flops: float, case: str
) -> Property:
    def holds(answer) -> str | None:
        given = (tokens, sequences_per_s, num_devices, peak_flops)
        yours, spec = float(answer(dict(config), *given)), _utilisation(config, *given)
        return None if abs(yours - spec) <= 1e-6 * spec else f"yours {yours:.6g}, spec {spec:.6g} for {case}"

    return holds


def _idle_experts_do_not_work(answer) -> str | None:
    config = published("mixtral-8x7b").config
    few, many = (float(answer(config | {"num_local_experts": n}, 4096, 9.0, 8, 1e15)) for n in (8, 64))
    return (
        None
        if 1 <= many / few < 1.002
        else f"64 experts instead of 8, still two a token: yours grows {many / few:.3f} times, spec under 1.002 times"
    )


_MIXTRAL = published("mixtral-8x7b").config
_DEEPSEEK = published("deepseek-v3").config

EXERCISES = {
    "05.1": Exercise(
        "Predict a model's active parameters from its config",
        {
            "Mixtral 8x7B": _uses(_MIXTRAL | {"head_dim": 128}, "Mixtral 8x7B"),
            "Mixtral 8x22B": _uses(published("mixtral-8x22b").config | {"head_dim": 128}, "Mixtral 8x22B"),
            "a model by hand": _uses(_TINY, "the tiny model of the exercise"),
            "one expert": _uses(_TINY | {"num_local_experts": 1}, "one expert"),
            "heads wider than the model": _uses(_TINY | {"head_dim": 8}, "head_dim 8, which is not 4 / 2"),
            "fewer heads for keys and values": _uses(_TINY | {"num_key_value_heads": 1}, "one key and value head"),
            "a tied output is one matrix": _uses(_TINY | {"tie_word_embeddings": True}, "tied embeddings"),
            "all experts active: all parameters": _uses_what_it_stores,
            "idle experts add a row of the router each": _idle_experts_add_a_row,
            "40 random configs": _any_config,
        },
        hints=(
            "Add up one layer first: what does a token multiply there? Attention, router, two norms, and only its own "
            "experts.",
            "Attention has four matrices: queries and output are hidden_size x (heads * head_dim), keys and values "
            "hidden_size x (kv_heads * head_dim). An expert has three of hidden_size x intermediate_size. The router "
            "has a row for every expert, idle ones too. Then one more norm, and the embeddings, once if tied.",
            "c = config; d = c['hidden_size']; "
            "attention = 2 * d * c['head_dim'] * (c['num_attention_heads'] + c['num_key_value_heads']); "
            "experts = c['num_experts_per_tok'] * 3 * d * c['intermediate_size']; "
            "layer = attention + experts + d * c['num_local_experts'] + 2 * d; "
            "embeddings = c['vocab_size'] * d * (1 if c['tie_word_embeddings'] else 2); "
            "return c['num_hidden_layers'] * layer + d + embeddings",
        ),
    ),
    "05.2": Exercise(
        "Count the FLOPs of a layer's forward and backward pass",
        {
            "by hand": _costs(10, 4, 8, 8, 2, 0, False),
            "no tokens": _costs(0, 4, 8, 8, 2, 0, False),
            "one expert": _costs(5, 4, 8, 1, 1, 0, False),
            "idle experts cost the router alone": _costs(10, 4, 8, 64, 2, 0, False),
            "shared experts see every token": _costs(10, 4, 8, 8, 2, 3, False),
            "a frozen router": _costs(10, 4, 8, 8, 2, 0, True),
            "a frozen router and shared experts": _costs(7, 5, 3, 9, 4, 1, True),
            "DeepSeek-V3's layer, whole numbers": _costs(4096, 7168, 2048, 256, 8, 1, True),
            "what the counter sees, trained router": _counted(2),
            "what the counter sees, frozen router": _counted(3),
            "what the counter sees, other sizes": _counted(8),
        },
        hints=(
            "Forward: tokens meet the router's (num_experts x d_model) and, top_k + num_shared times, three matrices "
            "of d_model x d_expert. A multiply-add is 2.",
            "Backward: each product of the forward pass becomes two of its size, one for its input and one for its "
            "weight. A frozen router needs no gradient of its weight, but the gradient for x still goes through it.",
            "router = 2 * tokens * d_model * num_experts; "
            "experts = 6 * tokens * (top_k + num_shared) * d_model * d_expert; "
            "return router + experts, (1 if router_frozen else 2) * router + 2 * experts",
        ),
    ),
    "05.3": Exercise(
        "Find the conventions that a published figure allows",
        {
            "gpt-oss-120b: one": _publishers("gpt-oss-120b"),
            "Mixtral 8x7B: one": _publishers("mixtral-8x7b"),
            "Mixtral 8x22B: all three": _publishers("mixtral-8x22b"),
            "DBRX: two": _publishers("dbrx"),
            "Qwen1.5-MoE": _publishers("qwen1.5-moe-a2.7b"),
            "DeepSeek-V2-Lite: none by rounding": _publishers("deepseek-v2-lite"),
            "a figure that is far off": _fits(_MIXTRAL, 46_700_000_000, 100_000_000, "the stored parameters"),
            "tied embeddings": _fits(
                _TINY | {"tie_word_embeddings": True},
                count(_TINY | {"tie_word_embeddings": True}).active_params,
                2,
                "a tiny model with one matrix for input and output",
            ),
            "half a unit of the last digit": _at_the_edge,
        },
        hints=(
            'Count three times: ml.count(config, embeddings="both"), "output" and "none".',
            "A count fits if it rounds to the figure: if it lies no further away than half of the step. Nearest is not "
            "enough, and several may fit.",
            "names = ('both', 'output', 'none'); "
            "counts = {n: ml.count(config, embeddings=n).active_params for n in names}; "
            "return [n for n in names if 2 * abs(counts[n] - active_params) <= step]",
        ),
    ),
    "05.4": Exercise(
        "Compute how much of its peak a cluster uses",
        {
            "Mixtral on 8 devices": _busy(_MIXTRAL, 4096, 9.0, 8, 989.4e12, "Mixtral, 9 sequences of 4,096 a second"),
            "long sequences": _busy(_MIXTRAL, 32768, 0.5, 8, 989.4e12, "Mixtral, half a sequence of 32,768 a second"),
            "one device": _busy(_MIXTRAL, 4096, 1.0, 1, 989.4e12, "one device"),
            "DeepSeek-V3": _busy(_DEEPSEEK, 4096, 300.0, 2048, 989.4e12, "DeepSeek-V3 on 2,048 devices"),
            "one token": _busy(_MIXTRAL, 1, 1e4, 8, 989.4e12, "sequences of one token"),
            "idle experts do not work": _idle_experts_do_not_work,
        },
        hints=(
            "Model FLOPs a second over peak FLOPs a second. ml.count(config).flops_per_sequence(tokens) is a forward "
            "pass, with attention as long as each token needs it.",
            "A training step is forward and backward: three times that. The cluster's peak is that of all devices.",
            "step = 3 * ml.count(config).flops_per_sequence(tokens); "
            "return step * sequences_per_s / (num_devices * peak_flops)",
        ),
    ),
}
