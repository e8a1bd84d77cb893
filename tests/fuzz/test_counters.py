"""Counts: whole numbers against plain loops, against PyTorch's products while a layer runs, and against real models."""

import itertools
import math

import torch
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_lab import MoE, count, flop_counter, measure_balance
from moe_lab.accounting.layer import PassFlops, dense_flops, expert_flops, layer_flops, linear_flops, router_flops
from moe_lab.accounting.precision import BITS
from moe_lab.activations import ACTIVATIONS, GATED
from moe_lab.balance import device_load, tile_padding
from moe_lab.dispatch import one_hot_flops, table_flops
from moe_lab.roofline import (
    BYTES,
    DEVICES,
    DIRECTIONS,
    LayerShape,
    attainable,
    compute_bound_from,
    each_expert,
    expert_cost,
    experts_hit,
    popularity,
)

from .cases import attempt, fuzzed

HUGE = st.sampled_from((2**31, 2**40 + 1, 10**20, 10**30))


def size(low, high):
    return st.one_of(st.integers(low, high), st.integers(low, high), HUGE)


@fuzzed(
    "counters",
    cases=700,
    few=30,
    tokens=size(0, 50),
    widths=st.tuples(size(1, 40), size(1, 40)),
    experts=st.integers(1, 9),
    shared=st.integers(0, 3),
    activation=st.sampled_from(ACTIVATIONS),
    grads=st.tuples(st.booleans(), st.booleans()),
    data=st.data(),
)
def test_closed_forms_are_sums_over_products(tokens, widths, experts, shared, activation, grads, data):
    top_k = data.draw(st.integers(1, experts))
    (d_model, d_expert), (input_grad, weight_grad) = widths, grads
    options = dict(input_grad=input_grad, weight_grad=weight_grad)
    sizes = (tokens, d_model, d_expert, experts, top_k, shared, activation)
    flops = attempt("counters", lambda: layer_flops(*sizes, **options), must="answer")
    gates = 2 if activation in GATED else 1

    def product(rows, inputs, outputs, first):
        """Forward, then back to the rows and to the matrix."""
        forward = 2 * rows * inputs * outputs
        to_rows = input_grad if first else input_grad or weight_grad
        return forward, forward * to_rows + forward * weight_grad

    rows = {"experts": tokens * top_k, "shared_experts": tokens * shared}
    want = {"router": [product(tokens, d_model, experts, True)]}
    for name, many in rows.items():
        want[name] = [product(many, d_model, d_expert, True)] * gates + [product(many, d_expert, d_model, False)]
    for name, products in want.items():
        assert flops[name] == PassFlops(*(sum(side) for side in zip(*products, strict=True))), name
    dense = dense_flops(tokens, d_model, d_expert, top_k, shared, activation, **options)
    assert dense == flops["experts"] + flops["shared_experts"]
    assert one_hot_flops(tokens, experts, top_k, d_model) == 4 * tokens * experts * top_k * d_model
    assert table_flops(tokens, top_k, d_model) == 2 * tokens * top_k * d_model


@fuzzed(
    "counters",
    cases=300,
    few=10,
    shape=st.tuples(st.integers(0, 3), st.integers(0, 5)),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    experts=st.integers(1, 6),
    shared=st.integers(0, 2),
    activation=st.sampled_from(ACTIVATIONS),
    backend=st.sampled_from(("loop", "grouped")),
    data=st.data(),
)
def test_closed_forms_are_the_products_that_run(shape, widths, experts, shared, activation, backend, data):
    top_k = data.draw(st.integers(1, experts))
    layer = MoE(*widths, experts, top_k, "top_k", shared, backend, activation=activation)
    x = torch.randn(*shape, widths[0], requires_grad=True)
    with flop_counter() as forward:
        y = layer(x)
    with flop_counter() as backward:
        y.sum().backward()
    assert not forward.uncounted and not backward.uncounted
    flops = sum(layer_flops(math.prod(shape), *widths, experts, top_k, shared, activation).values(), PassFlops())
    assert (forward.total_flops, backward.total_flops) == (flops.forward, flops.backward)


@st.composite
def shapes(draw):
    experts = draw(st.integers(1, 16))
    top_k = draw(st.integers(1, experts))
    return LayerShape(draw(st.integers(1, 9999)), draw(st.integers(1, 9999)), experts, top_k)


@fuzzed(
    "counters",
    cases=500,
    few=25,
    shape=shapes(),
    tokens=st.integers(1, 5000),
    dtype=st.sampled_from(sorted(BYTES)),
    direction=st.sampled_from(DIRECTIONS),
    data=st.data(),
)
def test_rooflines(shape, tokens, dtype, direction, data):
    """A load by loops; an expected one between the fewest and the most experts; a batch that is just large enough."""
    load = torch.tensor([data.draw(st.integers(0, tokens)) for _ in range(shape.num_experts)])
    options, rows, size_of = dict(direction=direction, dtype=dtype), int(load.sum()), BYTES[dtype]
    right = 1 <= rows <= tokens * shape.top_k
    must, word = ("answer", None) if right else ("refuse", "load")
    cost = attempt("counters", lambda: expert_cost(shape, tokens, load=load, **options), must=must, refuses=word)
    if cost is not None:
        matrix, training = shape.d_model * shape.d_expert, direction == "training"
        flops = sum(2 * n * matrix * (3 if training else 1) for n in load.tolist() for _ in range(3))
        moved = sum(size_of * matrix * (2 if training else 1) for n in load.tolist() if n for _ in range(3))
        moved += tokens * size_of * shape.d_model * (5 if training else 2)
        if training:
            moved += 3 * matrix * size_of * shape.num_experts + rows * 2 * size_of * 2 * shape.d_expert
        assert (cost.flops, cost.bytes) == (flops, moved)
    uneven = data.draw(st.floats(1, shape.num_experts / shape.top_k))
    chances = popularity(shape.num_experts, shape.top_k, uneven)
    assert math.isclose(sum(chances), shape.top_k, rel_tol=1e-6) and max(chances) <= 1
    hit = experts_hit(tokens, shape.num_experts, shape.top_k, uneven)
    assert shape.top_k - 1e-6 <= hit <= min(shape.num_experts, tokens * shape.top_k) + 1e-6
    alone = each_expert(shape, tokens, max_over_mean=uneven, **options)
    assert len(alone) == shape.num_experts and all(rows >= 1 - 1e-9 for rows, _ in alone)
    device = data.draw(st.sampled_from([d for d in DEVICES.values() if dtype in d.flops_per_s]))
    bound = attainable(expert_cost(shape, tokens, **options), device, dtype)
    assert 0 < bound.flops_per_s <= device.peak(dtype) and bound.time_ms > 0
    least = compute_bound_from(shape, device, **options)
    if least is not None:
        reaches = [
            attainable(expert_cost(shape, n, **options), device, dtype).limit for n in (least, max(1, least - 1))
        ]
        assert reaches[0] == "compute" and (least == 1 or reaches[1] == "memory")


@fuzzed("counters", cases=300, few=20, load=st.lists(st.integers(0, 2**40), min_size=1, max_size=12), data=st.data())
def test_balance_of_a_load(load, data):
    total, experts = sum(load), len(load)
    balance = attempt("counters", lambda: measure_balance(torch.tensor(load)), must="answer")
    assert balance.dead == load.count(0)
    mean = total / experts
    assert math.isclose(balance.variance, sum((n - mean) ** 2 for n in load) / experts, rel_tol=1e-9, abs_tol=1e-9)
    if total:
        pairs = sum(abs(a - b) for a, b in itertools.product(load, load)) / (2 * experts * total)
        assert math.isclose(balance.gini, pairs, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(balance.max_over_mean, max(load) / mean) and 0 <= balance.entropy <= 1 + 1e-12
    tile = data.draw(st.integers(1, 300))
    rows = sum(-(-n // tile) * tile for n in load)
    assert math.isclose(tile_padding(torch.tensor(load), tile), rows / total - 1 if total else 0.0, abs_tol=1e-12)
    devices = data.draw(st.integers(1, experts))
    must = "answer" if experts % devices == 0 else "refuse"
    shares = attempt("counters", lambda: device_load(torch.tensor(load), devices), must=must)
    each = experts // devices
    assert shares is None or shares.tolist() == [sum(load[n * each : (n + 1) * each]) for n in range(devices)]


WRONG = (-1, 1.5, None, "8", True, math.nan, math.inf, [], 10**5000, -(10**5000))
CALLS = {
    layer_flops: dict(tokens=4, d_model=3, d_expert=2, num_experts=4, top_k=2, num_shared=1, rows=3),
    dense_flops: dict(tokens=4, d_model=3, d_expert=2, top_k=2, num_shared=1),
    expert_flops: dict(rows=4, d_model=3, d_expert=2),
    router_flops: dict(tokens=4, d_model=3, num_experts=2),
    linear_flops: dict(rows=4, inputs=3, outputs=2),
    one_hot_flops: dict(tokens=4, num_experts=3, capacity=2, d_model=2),
    table_flops: dict(tokens=4, slots=3, d_model=2),
    LayerShape: dict(d_model=3, d_expert=2, num_experts=4, top_k=2),
    popularity: dict(num_experts=4, top_k=2, max_over_mean=1.5),
    experts_hit: dict(tokens=3, num_experts=4, top_k=2, max_over_mean=1.5),
}
"""Functions with arguments that are right; each must be refused by name where it is wrong."""


@st.composite
def wrong_calls(draw):
    number = draw(st.integers(0, len(CALLS) - 1))
    name = draw(st.sampled_from(sorted([*CALLS.values()][number])))
    return number, name, draw(st.integers(0, len(WRONG) - 1))


@fuzzed("counters", cases=300, few=60, wrong=wrong_calls())
def test_wrong_sizes_are_refused_by_name(wrong):
    number, name, which = wrong
    function, right = [*CALLS.items()][number]
    value = WRONG[which]
    huge = isinstance(value, int) and value > 10**4000
    if (value is None and name == "rows" and function is layer_flops) or (value == 1.5 and name == "max_over_mean"):
        return
    attempt("counters", lambda: function(**(right | {name: value})), must="either" if huge else "refuse", refuses=name)


FAMILIES = {
    "mixtral": ("num_local_experts", "num_experts_per_tok"),
    "olmoe": ("num_experts", "num_experts_per_tok"),
    "qwen3_moe": ("num_experts", "num_experts_per_tok"),
}
"""Model types whose configs need no more than `small_models` draws."""


@st.composite
def small_models(draw):
    kind = draw(st.sampled_from(sorted(FAMILIES)))
    experts, used = FAMILIES[kind]
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sizes = {
        "hidden_size": kv_heads * groups * draw(st.sampled_from((2, 4, 6))),
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(4, 90)),
        "num_attention_heads": kv_heads * groups,
        "num_key_value_heads": kv_heads,
        experts: draw(st.integers(1, 9)),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": None,
    }
    if kind == "qwen3_moe":
        sizes |= {"moe_intermediate_size": draw(st.integers(1, 40)), "head_dim": draw(st.sampled_from((2, 8)))}
        sizes |= {"mlp_only_layers": [0] if draw(st.booleans()) else []}
    return kind, {**sizes, used: draw(st.integers(1, sizes[experts]))}


@fuzzed("configs", cases=250, few=6, model=small_models())
def test_counts_are_what_transformers_builds(model):
    kind, sizes = model
    config = CONFIG_MAPPING[kind](**sizes)
    with torch.device("meta"), no_init_weights():
        built = AutoModelForCausalLM.from_config(config)
    built.tie_weights()
    counts = attempt("configs", lambda: count({**config.to_dict(), "model_type": kind}), must="answer")
    assert counts.total_params == sum(parameter.numel() for parameter in built.parameters())
    assert counts.bytes("float32") == 4 * counts.total_params and counts.bytes("int4") * 8 >= 4 * counts.total_params
    dtypes = [counts.bytes(dtype) for dtype in sorted(BITS, key=BITS.get)]
    assert dtypes == sorted(dtypes) and counts.active_params <= counts.total_params
