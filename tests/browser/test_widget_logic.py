"""The arithmetic in each widget's JavaScript is that of its Python class."""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from moe_lab.kernels.tile_order import ORDERS as KERNEL_ORDERS

from moe_lab.accounting.counts import count
from moe_lab.profiling import CATEGORIES, Trace, TraceEvent
from moe_lab.profiling.trace import ABOUT
from moe_lab.roofline import (
    BYTES,
    DEVICES,
    DIRECTIONS,
    SHAPES,
    Device,
    LayerShape,
    each_expert,
    expert_cost,
    popularity,
)
from moe_lab.routers import expert_capacity
from moe_lab.routers.capacity import OVERFLOWS, PRIORITIES
from moe_lab.schedule import SCHEDULERS, cut
from moe_lab.tracing import Launch, Outside, Record, Step
from moe_lab.widgets import (
    Accountant,
    CapacityBins,
    CollapseAndRescue,
    ExpertRoofline,
    RouteOneBatch,
    TextView,
    TracePlayer,
)
from moe_lab.widgets import accountant as accounts
from moe_lab.widgets import capacity_bins as bins
from moe_lab.widgets import tile_map as tiling
from moe_lab.widgets import trace_player as player
from moe_lab.widgets.expert_roofline import SKEWS, say_rate, say_time, three_digits
from moe_lab.widgets.memory_tracer import COUNTS, MemoryTracer
from moe_lab.widgets.route_one_batch import SCORES, draw_logits, name_idle, resize_logits

pytestmark = pytest.mark.browser


def batch_states(count):
    """Batches of every rule; a third have ties, a third extremes, some ask for every expert."""
    rng = random.Random(0)
    for number in range(count):
        num_experts = rng.choice([2, 3, 8, 17, 64])
        draws = [lambda: rng.gauss(0, 1), lambda: rng.randint(-1, 1), lambda: rng.choice([-700, -20, 0, 20, 700])]
        yield RouteOneBatch(
            [[draws[number % 3]() for _ in range(num_experts)] for _ in range(rng.randint(1, 12))],
            top_k=min(8, num_experts) if number % 5 == 0 else rng.randint(1, min(8, num_experts)),
            score=rng.choice(list(SCORES)),
            temperature=rng.choice([0.05, 0.7, 1.0, 10.0]),
            renormalise=rng.random() < 0.5,
        )


def test_route_one_batch_routes_and_says_the_same(logic):
    widgets = list(batch_states(100))
    names = ("logits", "num_experts", "top_k", "score", "temperature", "renormalise")
    states = [{name: getattr(widget, name) for name in names} for widget in widgets]
    results = logic(
        "route_one_batch",
        "argument.map((s) => { const r = m.route(s); return [r, m.loadOf(r, s.num_experts), m.summarise(s)]; })",
        states,
    )
    assert len(results) == 100
    for widget, (routes, load, sentence) in zip(widgets, results, strict=True):
        routing = widget.routing
        assert [route["experts"] for route in routes] == routing.experts.tolist()
        for route, weights in zip(routes, routing.weights.tolist(), strict=True):
            assert route["weights"] == pytest.approx(weights, rel=1e-12, abs=1e-300)
        assert load == routing.load.tolist()
        assert sentence == widget.summary()


def test_both_languages_draw_the_same_logits(logic):
    asked = [[seed, tokens, width] for seed in (0, 1, 2**31 - 1) for tokens, width in ((12, 64), (100, 2))]
    drawn = logic("route_one_batch", "argument.map((a) => m.drawLogits(...a))", asked)
    assert drawn == [draw_logits(*one) for one in asked]
    table = [[1.5, -2.0, 0.25], [0.0, 3.0, 1.0]]
    for width in (2, 3, 7):
        resized = logic("route_one_batch", "m.resizeLogits(...argument)", [table, 5, width])
        assert resized == resize_logits(table, 5, width)


def test_two_decimals_round_as_python_does(logic):
    rng = random.Random(0)
    values = [eighths / 8 for eighths in range(200)] + [rng.uniform(0, 64) for _ in range(200)]
    for module in ("route_one_batch", "capacity_bins"):
        assert logic(module, "argument.map(m.twoDecimals)", values) == [f"{value:.2f}" for value in values]


def test_idle_experts_have_the_same_names(logic):
    loads = [[1, 2], [0, 1], [0, 0, 1], [0, 0, 0, 0, 3], [0] * 5 + [9]]
    for module in ("route_one_batch", "text_view"):
        assert logic(module, "argument.map(m.nameIdle)", loads) == [name_idle(load) for load in loads]


def test_changed_logits_stay_in_range_and_leave_the_others(logic):
    table = [[1.0, 2.0], [3.0, 4.0]]
    changed = logic("route_one_batch", "[5, 1e9, -1e9, 0.126].map((v) => m.changeLogit(argument, 1, 0, v))", table)
    assert changed == [[[1.0, 2.0], [value, 4.0]] for value in (5, 1000, -1000, 0.13)]


def reading_states(count):
    """Readings with empty slots, of any size, some with a layer or slot that they do not have."""
    rng = random.Random(0)
    for number in range(count):
        view = TextView(lambda text: [], "")
        layers, num_bytes, slots = rng.randint(1, 5), rng.randint(1, 30), rng.randint(1, 4)
        view.num_experts = rng.randint(4, 64)
        bag = [*range(rng.randint(4, view.num_experts)), -1] if number % 3 else [2, -1]
        view.experts = [[[rng.choice(bag) for _ in range(slots)] for _ in range(num_bytes)] for _ in range(layers)]
        view.pieces = ["x"] * num_bytes
        view.total_bytes = num_bytes + rng.choice([0, 0, 7])
        view.layer, view.slot = rng.randint(0, 6), rng.randint(-1, 5)
        view.error = "ValueError: no" if number % 50 == 0 else ""
        yield view


def test_text_view_counts_and_says_the_same(logic):
    views = [*reading_states(100), TextView(lambda text: [], "")]
    names = ("experts", "num_experts", "pieces", "total_bytes", "layer", "slot", "error")
    states = [{name: getattr(view, name) for name in names} for view in views]
    both = "argument.map((s) => [m.summarise(s), s.experts.map((_, layer) => m.loadOf(s, layer, -1))])"
    results = logic("text_view", both, states)
    for view, (sentence, loads) in zip(views, results, strict=True):
        assert sentence == view.summary()
        assert loads == [view.load(layer) for layer in range(len(view.experts))]


def test_bytes_have_names(logic):
    pieces = ["a", "ï", "⋯", "€", "⋯", "⋯"]
    names = logic("text_view", "argument.map((_, byte) => m.nameByte(argument, byte))", pieces)
    assert names[:3] == ["byte 0, a", "byte 1, ï", "byte 2, continues ï"]
    assert names[5] == "byte 5, continues €"
    state = {"experts": [[[2, -1], [-1, -1]]], "weights": [[[0.75, 0], [0, 0]]]}
    spoken = logic("text_view", "[0, 1].map((byte) => m.nameChoices(argument, 0, byte))", state)
    assert spoken == ["expert 2 (0.75)", "no expert"]


def bin_states(count):
    """Bins of every rule and size; a third without skew, a fifth at the ends of the ranges."""
    rng = random.Random(0)
    for number in range(count):
        low, high = number % 10 == 0, number % 10 == 5
        num_experts = 2 if low else 16 if high else rng.randint(2, 16)
        yield CapacityBins(
            tokens=8 if low else 64 if high else rng.randint(8, 64),
            num_experts=num_experts,
            top_k=min(4, num_experts) if number % 4 == 0 else rng.randint(1, min(4, num_experts)),
            capacity_factor=rng.choice([0.5, 1, 1.25, 3, rng.uniform(0.5, 3), rng.randint(10, 60) / 20]),
            skew=0 if number % 3 == 0 else rng.uniform(0, 2),
            overflow=OVERFLOWS[number % 2],
            priority=PRIORITIES[number % 3],
            seed=rng.choice([0, 2**31 - 1, rng.randrange(2**31)]),
        )


BIN_TRAITS = ("tokens", "num_experts", "top_k", "capacity_factor", "skew", "overflow", "priority", "seed")


def test_capacity_bins_places_counts_and_says_the_same(logic):
    widgets = list(bin_states(70))
    states = [{name: getattr(widget, name) for name in BIN_TRAITS} for widget in widgets]
    all_four = """argument.map((s) => {
        const placed = m.place(s);
        const found = m.count(s, placed);
        return [placed.experts, placed.bins, found, m.summarise(s, found)];
    })"""
    results = logic("capacity_bins", all_four, states)
    assert len(results) == 70
    for widget, (experts, chips, found, sentence) in zip(widgets, results, strict=True):
        routing = widget.routing
        assert experts == routing.experts.tolist()
        assert [len(one) for one in chips] == routing.load.tolist()
        assert all(experts[chip["token"]][chip["slot"]] == number for number, one in enumerate(chips) for chip in one)
        assert found == widget.count()
        assert sentence == widget.summary()
    assert {found["rerouted"] > 0 for _, _, found, _ in results} == {True, False}
    assert any(found["dropped"] for widget, (_, _, found, _) in zip(widgets, results, strict=True) if widget.skew == 0)


def test_both_languages_draw_the_same_tokens(logic):
    asked = [[seed, 64, 16, skew] for seed in (0, 1, 2**31 - 1) for skew in (0, 0.7, 2)]
    drawn = logic("capacity_bins", "argument.map((a) => m.drawLogits(...a))", asked)
    assert drawn == [bins.draw_logits(*one) for one in asked]
    states = [{"priority": "random", "seed": seed, "tokens": 64} for seed in range(20)]
    orders = logic("capacity_bins", "argument.map((s) => m.servingOrder(s, []))", states)
    assert orders == [bins.draw_order(seed, 64) for seed in range(20)]


def test_equal_scores_are_served_in_the_order_of_the_tokens(logic):
    logits = torch.tensor([[0.0, d] for d in (1, -1, 0, 2, -2, 1)] + [[3.0, 1], [3, 3]])
    asked = {"priority": "score", "seed": 0, "tokens": 8}
    order = logic("capacity_bins", "m.servingOrder(...argument)", [asked, logits.tolist()])
    assert order == logits.softmax(dim=1).amax(dim=1).argsort(descending=True, stable=True).tolist()
    assert order == [3, 4, 6, 0, 1, 5, 2, 7]


def test_capacities_are_the_routers_at_every_step_of_the_slider(logic):
    names = ("capacity_factor", "tokens", "top_k", "num_experts")
    asked = [
        (step / 20, tokens, top_k, num_experts)
        for step in range(10, 61)
        for tokens in (8, 11, 50, 64)
        for num_experts in range(2, 17)
        for top_k in range(1, min(4, num_experts) + 1)
    ]
    states = [dict(zip(names, one, strict=True)) for one in asked]
    assert logic("capacity_bins", "argument.map(m.capacityOf)", states) == [expert_capacity(*one) for one in asked]


RESCUE_TRAITS = ("runs", "steps", "num_experts", "asked", "chance", "method", "compare", "layer", "step")


def training_record(rng, num_experts, samples, layers, names):
    """Loads of any size: some experts without a token, some runs exactly even, some that drop."""

    def load(name):
        if name == "balanced":
            return [4 * 17] * num_experts
        busy = rng.sample(range(num_experts), rng.randint(1, num_experts))
        asked = 4 * 17 * num_experts
        kept = asked - rng.choice([0, 1, asked, rng.randint(0, 100)]) if name == "capacity_drop" else asked
        draws = rng.choices(busy, k=kept)
        return [draws.count(expert) for expert in range(num_experts)]

    return {
        "model": {"top_k": 2, "context": 17},
        "train": {"batch": 2 * num_experts},
        "runs": [
            {
                "name": name,
                "label": f"the method {name}",
                "trace": [{"step": 7 * at + 3, "loss": rng.uniform(1.5, 5.6)} for at in range(samples)],
                "loads": [[load(name) for _ in range(layers)] for _ in range(samples)],
            }
            for name in names
        ],
    }


def rescue_views(widget):
    """Every (method, layer, step) of a widget once, each method beside the next one."""
    names = [run["name"] for run in widget.runs]
    for number, method in enumerate(names):
        for layer in range(len(widget.runs[0]["loads"])):
            for step in widget.steps:
                widget.method, widget.compare = method, names[(number + 1) % len(names)]
                widget.layer, widget.step = layer, step
                yield widget


def test_collapse_and_rescue_counts_and_says_the_same(logic):
    rng = random.Random(0)
    names = ["none", "random", "switch_aux_1e-2", "sign_1e-2", "capacity_drop", "balanced"]
    small = CollapseAndRescue(training_record(rng, 5, 4, 3, names))
    states, wanted = [], []

    def note(widget):
        states.append({name: getattr(widget, name) for name in RESCUE_TRAITS})
        wanted.append((widget.summary(), [widget.tally(), widget.tally(widget.compare)]))

    for widget in rescue_views(small):
        note(widget)
    assert len(states) == 6 * 3 * 4
    for _ in range(100):
        some = rng.sample(names, rng.randint(1, 6))
        samples, layers = rng.randint(1, 3), rng.randint(1, 2)
        record = training_record(rng, rng.choice([2, 3, 16, 17, 64]), samples, layers, some)
        step = 7 * rng.randrange(samples) + 3
        note(CollapseAndRescue(record, rng.choice(some), rng.choice(some), rng.randrange(layers), step))
    said = "argument.map((s) => { const p = m.compareRuns(s); return [m.summarise(s, p), p.map((one) => one.found)]; })"
    for (sentence, tallies), (ours, found) in zip(wanted, logic("collapse_and_rescue", said, states), strict=True):
        assert ours == sentence
        assert found == [pytest.approx(one, rel=1e-12, abs=1e-12) for one in tallies]
    assert {one["even"] for _, both in wanted for one in both} == {True, False}
    assert {one["dropped"] > 0 for _, both in wanted for one in both} == {True, False}


def test_per_cents_are_pythons(logic):
    pairs = [[part, whole] for whole in (1, 3, 40, 200, 4096) for part in range(0, whole + 1, max(1, whole // 40))]
    assert logic("collapse_and_rescue", "argument.map((a) => m.perCent(...a))", pairs) == [
        int(100 * Fraction(part, whole) + Fraction(1, 2)) for part, whole in pairs
    ]


ROOF_TRAITS = ("devices", "models", "device", "model", "d_model", "d_expert", "num_experts", "top_k", "tokens")
ROOF_TRAITS += ("dtype", "direction", "skew")


def roof_states(count):
    """Every device, pass, dtype and skew; a third of the models are nobody's, a fifth of the batches at an end."""
    rng = random.Random(0)
    slow = Device("slow", {"float32": 1e9, "bfloat16": 5e7}, 3e10, "measured", "made up")
    devices = [*DEVICES.values(), slow]
    for number in range(count):
        device = rng.choice(devices)
        shape = LayerShape(rng.randint(1, 8192), rng.randint(1, 16384), rng.randint(1, 512), 1)
        num_experts = None if number % 2 else 2 ** rng.randint(0, 9)
        most = min(16, num_experts or shape.num_experts)
        model = shape if number % 3 == 0 else rng.choice(list(SHAPES))
        top_k = rng.randint(1, most) if num_experts or number % 3 == 0 else None
        yield ExpertRoofline(
            device.name,
            model,
            tokens={0: 1, 1: 2**20}.get(number % 5, rng.randint(1, 2 ** rng.randint(0, 20))),
            dtype=rng.choice(list(device.flops_per_s)),
            direction=DIRECTIONS[number % 2] if number % 7 else "training",
            skew=rng.choice(SKEWS),
            num_experts=num_experts,
            top_k=top_k,
            devices=devices,
        )


def test_expert_roofline_counts_and_says_the_same(logic):
    widgets = list(roof_states(80))
    states = [{name: getattr(widget, name) for name in ROOF_TRAITS} for widget in widgets]
    both = "argument.map((s) => { const found = m.examine(s); return [found, m.summarise(s, found)]; })"
    results = logic("expert_roofline", both, states)
    assert len(results) == 80
    for widget, (found, sentence) in zip(widgets, results, strict=True):
        for mark, shape in ((found["experts"], widget.shape), (found["dense"], widget.shape.dense)):
            intensity, bound, start = widget.bound(shape)
            assert [mark["intensity"], mark["flops_per_s"], mark["time_ms"]] == pytest.approx(
                [intensity, bound.flops_per_s, bound.time_ms], rel=1e-9
            )
            assert (mark["limit"], mark["from"]) == (bound.limit, start)
        how = {"direction": widget.direction, "dtype": widget.dtype, "max_over_mean": widget.max_over_mean}
        cost = expert_cost(widget.shape, widget.tokens, **how)
        assert [found["experts"]["flops"], found["experts"]["bytes"]] == pytest.approx(
            [cost.flops, cost.bytes], rel=1e-9
        )
        alone = each_expert(widget.shape, widget.tokens, **how)
        assert [one["rows"] for one in found["each"]] == pytest.approx([rows for rows, _ in alone], rel=1e-9)
        assert [one["intensity"] for one in found["each"]] == pytest.approx([c.intensity for _, c in alone], rel=1e-9)
        assert found["byMemory"] == widget.by_memory()
        assert sentence == widget.summary()
    assert {found["experts"]["limit"] for found, _ in results} == {"memory", "compute"}
    assert {found["experts"]["from"] is None for found, _ in results} == {True, False}
    assert any(0 < found["byMemory"] < len(found["each"]) for found, _ in results)
    assert {widget.dtype for widget in widgets} == set(BYTES)


def test_both_languages_skew_alike(logic):
    asked = [[num_experts, 2, skew] for num_experts in (2, 3, 17, 512) for skew in (1, 1.5, num_experts / 2)]
    asked = [one for one in asked if one[2] <= one[0] / 2]
    for chances, one in zip(
        logic("expert_roofline", "argument.map((a) => m.popularity(...a))", asked), asked, strict=True
    ):
        assert chances == pytest.approx(popularity(*one), rel=1e-9)


def test_both_languages_read_numbers_alike(logic):
    rng = random.Random(0)
    values = (
        [eighths / 8 for eighths in range(1, 400)] + [10 ** rng.uniform(-3, 13) for _ in range(400)] + [999.5, 1e3, 0.1]
    )
    for function, twin in (("threeDigits", three_digits), ("sayTime", say_time), ("sayRate", say_rate)):
        scaled = [value * 1e6 if twin is say_rate else value for value in values]
        assert logic("expert_roofline", f"argument.map(m.{function})", scaled) == [twin(value) for value in scaled]


ACCOUNT_TRAITS = ("models", "model", *accounts.SIZES, "dtype", "context", "embeddings", "mode")


def account_states(count_of_custom):
    """Every published model, then custom ones of any size, a tenth at each end of all sliders; settings at random."""
    rng = random.Random(0)
    one = Accountant()  # its models are counted once

    def settings():
        one.dtype, one.context = rng.choice(accounts.DTYPES), rng.choice(accounts.CONTEXTS)
        one.embeddings, one.mode = rng.choice(accounts.CONVENTIONS), rng.choice(accounts.MODES)

    for slug in accounts.MODELS:
        for _ in range(3):
            one.model = slug
            settings()
            yield one
    one.model = accounts.CUSTOM
    for number in range(count_of_custom):
        one.heads, one.num_experts = accounts.SIZES["heads"][-1], accounts.SIZES["num_experts"][-1]
        for name in sorted(accounts.SIZES, key=lambda name: name in ("heads", "num_experts")):
            offered = accounts.SIZES[name][:6] if name == "num_layers" and number % 10 != 5 else accounts.SIZES[name]
            setattr(one, name, {0: offered[0], 5: offered[-1]}.get(number % 10, rng.choice(offered)))
        settings()
        yield one


def test_accountant_counts_and_says_the_same(logic):
    states, wanted = [], []
    for widget in account_states(25):
        states.append({name: getattr(widget, name) for name in ACCOUNT_TRAITS if name != "models"})
        wanted.append((widget.tally(), widget.summary()))
    both = """argument[1].map((s) => {
        const state = { ...s, models: argument[0] };
        return [m.tally(m.modelOf(state), state), m.summarise(state)];
    })"""
    results = logic("accountant", both, [Accountant().models, states])
    assert len(results) == 61
    for (tally, sentence), (found, ours) in zip(wanted, results, strict=True):
        assert found == tally
        assert list(found["params"]) == list(tally["params"]), "in the same order"
        assert ours == sentence
    assert {state["model"] for state in states} == {*accounts.MODELS, "custom"}
    assert {"num_shared" in state and state["num_shared"] > 0 for state in states} == {True, False}


def test_the_custom_model_in_the_browser_is_the_config_that_is_counted(logic):
    rng, states = random.Random(1), [accounts.START]
    for end in (0, -1):
        states.append({name: offered[end] for name, offered in accounts.SIZES.items()})
    for _ in range(50):
        state = {name: rng.choice(offered) for name, offered in accounts.SIZES.items()}
        state["top_k"] = min(state["top_k"], state["num_experts"])
        state["kv_heads"] = min(state["kv_heads"], state["heads"])
        states.append(state)
    described = logic("accountant", "argument.map(m.describe)", states)
    assert described == [accounts.describe(count(accounts.plain_config(**state))) for state in states]


def test_both_languages_offer_the_same_sizes(logic):
    found = logic("accountant", "[m.SIZES, m.START, m.CONTEXTS]", None)
    sizes = {name: list(offered) for name, offered in accounts.SIZES.items()}
    assert found == [sizes, accounts.START, list(accounts.CONTEXTS)]


def test_numbers_have_the_same_names(logic):
    rng = random.Random(0)
    numbers = [rng.randrange(1, 10 ** rng.randint(1, 15)) for _ in range(400)]
    numbers += [n for power in range(1, 16) for n in (10**power - 1, 10**power, 995 * 10**power, 2005 * 10**power // 2)]
    numbers = [number for number in numbers if number < 2**53]
    for more in (0, 3):
        named = logic("accountant", f"argument.map((n) => m.nameNumber(n, {more}))", numbers)
        assert named == [accounts.name_number(number, more) for number in numbers]
    assert logic("accountant", "argument.map(m.nameBytes)", numbers) == list(map(accounts.name_bytes, numbers))
    pairs = [[part, whole] for whole in numbers[:60] for part in (0, 1, whole // 7, whole // 2, whole, 3 * whole)]
    assert logic("accountant", "argument.map((a) => m.perCent(...a))", pairs) == [accounts.per_cent(*a) for a in pairs]
    assert logic("accountant", "argument.map((a) => m.timesOf(...a))", pairs) == [accounts.times_of(*a) for a in pairs]


def test_labels_do_not_touch_and_the_smallest_give_way(logic):
    rng = random.Random(0)
    for _ in range(50):
        labels = rng.randint(1, 9)
        centres = sorted(rng.uniform(100, 600) for _ in range(labels))
        widths = [rng.uniform(20, 100) for _ in range(labels)]
        sizes = [rng.random() for _ in range(labels)]
        places = logic("accountant", "m.placeLabels(...argument)", [centres, widths, sizes, [100, 600]])
        kept = [number for number, place in enumerate(places) if place is not None]
        starts = [places[number] - widths[number] / 2 for number in kept]
        stops = [places[number] + widths[number] / 2 for number in kept]
        assert all(stop + 6 <= start + 1e-6 for stop, start in zip(stops[:-1], starts[1:], strict=True))
        assert starts[0] >= 100 - 1e-6 and stops[-1] <= 600 + 1e-6
        gone = [sizes[number] for number in range(labels) if number not in kept]
        assert not gone or max(gone) < min(sizes[number] for number in kept)
        assert bool(gone) == (sum(widths) + 6 * (labels - 1) > 500)
    alone = logic("accountant", "m.placeLabels(...argument)", [[200, 400], [50, 50], [1, 2], [0, 500]])
    assert alone == [200, 400], "where there is room a label is under its part"


def test_an_axis_ends_a_little_beyond_the_largest(logic):
    values = [1, 7, 45.1e9, 46.7e9, 99e9, 671e9, 0.97, 0.3]
    ends = logic("accountant", "argument.map((v) => m.roundEnd([v, v / 2]))", values)
    for value, end in zip(values, ends, strict=True):
        assert 1.02 * value <= end < 1.5 * value * 1.02
    one = logic("accountant", "m.wholeModels({ num_experts: 8 }, { params: { experts: 45 }, total_params: 47 })", None)
    assert one == {"name": "8 whole models", "number": 8 * 2 + 45}
    for total, num_experts in ((45, 8), (90, 8), (47, 1)):  # all experts; far more; only one
        asked = {"num_experts": num_experts, "total": total}
        expression = "m.wholeModels(argument, { params: { experts: 45 }, total_params: argument.total })"
        assert logic("accountant", expression, asked) is None


TRACER_TRAITS = ("tensors", "names", "patterns", "steps", "programs", "launches", "sources", "reference")
TRACER_TRAITS += ("program", "step", "count")


def drawn_step(rng, program, number, tensors):
    """Any step: runs and single elements, some of them twice, up to all of them or none."""
    kind = rng.choice(["load", "load", "store", "atomic", "dot"])
    if kind == "dot":
        return Step(0, program, number, "dot", flops=2 * rng.randint(1, 64) ** 3, source="total = tl.dot(left, right)")
    name = rng.choice(list(tensors))
    cells, width = tensors[name].numel(), tensors[name].element_size()
    start = rng.randrange(cells)
    some = [*range(start, rng.randint(start, cells)), *rng.choices(range(cells), k=rng.choice([0, 0, 3]))]
    some += some[:2] if rng.random() < 0.2 else []
    elements, masked = np.array(some, np.int64), np.array(rng.sample(range(cells), rng.choice([0, 0, 1])), np.int64)
    at = {"bytes_at": elements * width, "width": width, "masked_lanes": len(masked) + rng.choice([0, 0, 5])}
    return Step(0, program, number, kind, name, elements, masked, source=f"tl.{kind}({name})", **at)


def traced_states(count):
    """Records of one or two launches on one to three axes, with idle programs, and some accesses outside."""
    rng = random.Random(0)
    shapes = [(1,), (7,), (70,), (5, 9), (2, 3, 4), (6, 1), ()]
    for _ in range(count):
        tensors = {
            name: torch.zeros(rng.choice(shapes), dtype=rng.choice([torch.float32, torch.int64, torch.float16]))
            for name in rng.sample("xwyz", rng.randint(1, 4))
        }
        launches = []
        for kernel in ("first", "second")[: rng.randint(1, 2)]:
            grid = tuple(rng.choice([1, 1, 2, 3]) for _ in range(3))
            launches.append(Launch(kernel, grid, sum(int(np.prod(launch.grid)) for launch in launches)))
        record = Record.written_down(tensors, launches, [])
        for program in range(record.num_programs):
            record.steps += [drawn_step(rng, program, number, tensors) for number in range(rng.choice([0, 1, 4]))]
        if not record.steps:
            continue
        last = record.steps[-1]
        if last.tensor is not None and rng.random() < 0.5:
            where = (rng.choice([1, 3]), 99, 4096, 7)
            record.outside.append(Outside(last.program, last.number, last.kind, last.tensor, *where))
        program = rng.choice([last.program, rng.randrange(record.num_programs)])
        step = rng.randrange(max(1, len(record.of_program(program))))
        yield MemoryTracer(record, program=program, step=step, count=rng.choice(COUNTS))


def test_memory_tracer_counts_and_says_the_same(logic):
    widgets = list(traced_states(110))
    states = [{name: getattr(widget, name) for name in TRACER_TRAITS} for widget in widgets]
    both = "argument.map((s) => { const found = m.tally(s); return [found, m.summarise(s, found)]; })"
    results = logic("memory_tracer", both, states)
    assert len(results) >= 100
    for widget, (found, sentence) in zip(widgets, results, strict=True):
        assert found == widget.tally()
        assert sentence == widget.summary()
    assert {found["kind"] for found, _ in results} == {"load", "store", "atomic", "dot", None}
    for name in ("again", "outside", "masked"):
        assert {found[name] > 0 for found, _ in results} == {True, False}
    assert {len(widget.launches) for widget in widgets} == {1, 2}


def test_next_and_back_walk_through_all_steps(logic):
    walk = """argument.map(([s, by]) => {
        const seen = [];
        for (let at = { ...s }, last = null; JSON.stringify(at) !== JSON.stringify(last);) {
            last = at;
            at = { ...at, ...m.move(at, by) };
            seen.push([last.program, last.step]);
        }
        return seen;
    })"""
    asked, wanted = [], []
    for widget in traced_states(60):
        busy = [[program, step] for program, (_, _, steps, *_) in enumerate(widget.programs) for step in range(steps)]
        for by, way in ((1, busy), (-1, busy[::-1])):
            asked.append([{"programs": widget.programs, "program": way[0][0], "step": way[0][1]}, by])
            wanted.append(way)
    assert logic("memory_tracer", walk, asked) == wanted
    beyond = {"programs": [[0, 0, 2, 0], [0, 2, 3, 1], [0, 5, 0, 2]], "step": 9}
    fitted = logic("memory_tracer", "[0, 1, 2, 5].map((p) => m.fit({ ...argument, program: p }))", beyond)
    assert [(one["program"], one["step"]) for one in fitted] == [(0, 1), (1, 2), (2, 0), (2, 0)]


def test_cells_become_rectangles_without_gap_or_overlap(logic):
    rng, asked = random.Random(0), []
    for _ in range(200):
        columns = rng.randint(1, 12)
        asked.append([sorted(rng.sample(range(columns * 9), rng.randint(0, columns * 9))), columns])
    for (cells, columns), found in zip(
        asked, logic("memory_tracer", "argument.map((a) => m.rectangles(...a))", asked), strict=True
    ):
        covered = [
            (row + down) * columns + column + right
            for row, column, high, wide in found
            for down in range(high)
            for right in range(wide)
        ]
        assert sorted(covered) == cells
        assert all(column + wide <= columns for _, column, _, wide in found)
    box = [row * 12 + column for row in range(2, 7) for column in range(3, 8)]
    assert logic("memory_tracer", "m.rectangles(...argument)", [box, 12]) == [[2, 3, 5, 5]]


def test_large_numbers_have_commas(logic):
    numbers = [0, 7, 999, 1000, 12345, 999999, 1000000, 2**40]
    assert logic("memory_tracer", "argument.map(m.nameNumber)", numbers) == [f"{number:,}" for number in numbers]


MAP_TRAITS = ("presets", "preset", "block_m", "tiles_n", "programs", "scheduler", "order", "group_m", "num_xcds")
MAP_TRAITS += ("launch_cost", "step")


def map_states(count):
    """Loads with and without rows, every choice, every kind of step, and a few with more tiles than are drawn."""
    rng = random.Random(0)
    for number in range(count):
        most = rng.choice([3, 40, 150])
        widget = tiling.TileMap(
            [0] * 3 if number == 0 else [rng.choice([0, rng.randint(0, most)]) for _ in range(rng.randint(1, 8))],
            block_m=128 if number % 50 == 1 else rng.choice(tiling.BLOCKS),
            tiles_n=16 if number % 50 == 1 else rng.choice([1, 2, 3, 5]),
            programs=rng.choice([1, 3, 8, 16, 132]),
            scheduler=SCHEDULERS[number % 4],
            order=tiling.ORDERS[number // 4 % 5],
            group_m=rng.choice([1, 3, 16]),
            num_xcds=rng.choice(tiling.CACHES),
            launch_cost=rng.choice(tiling.LAUNCH_COSTS),
        )
        widget.preset = rng.choice(tiling.PRESETS)
        if number % 50 == 1:
            widget.presets = tiling.other_loads([90_000, 10, 20])
        else:
            widget.step = rng.choice([0, rng.randint(0, widget.tally()["last_step"]), 10**6])
        yield widget


def test_tile_map_schedules_counts_and_says_the_same(logic):
    widgets = list(map_states(100))
    states = [{name: getattr(widget, name) for name in MAP_TRAITS} for widget in widgets]
    drawn = [number for number, widget in enumerate(widgets) if widget.tiles <= tiling.MOST_TILES]
    results = logic("tile_map", "argument.map((s) => [m.countTiles(s), m.summarise(s)])", states)
    assert results == [[widget.tiles, widget.summary()] for widget in widgets]
    both = "argument.map((s) => { const found = m.schedule(s); return [found, m.tally(s, found)]; })"
    results = logic("tile_map", both, [states[number] for number in drawn])
    assert len(drawn) == 98
    kinds, faults = set(), set()
    for widget, (found, tally) in zip([widgets[number] for number in drawn], results, strict=True):
        assert tally == widget.tally()
        wanted = widget.schedule()
        assert [(one["expert"], one["rows"]) for one in found["rowTiles"]] == [
            (one.expert, one.rows) for one in wanted.row_tiles
        ]
        assert found["visits"] == [vars(one) for one in wanted.visits]
        assert [(one["start"], one["ready"], one["waves"], one["end"]) for one in found["launches"]] == [
            (one.start, one.ready, one.waves, one.end) for one in wanted.launches
        ]
        assert [(one["kind"], one["launch"], one["wave"], one["time"]) for one in found["moments"]] == [
            (one.kind, one.launch, one.wave, one.time) for one in wanted.moments
        ]
        kinds.add(tally["kind"])
        faults.add((tally["never"] > 0, tally["repeated"] > 0))
    assert kinds == {"launch", "wave", "end"} and faults == {(False, False), (True, False), (True, True)}


def test_both_languages_walk_over_tiles_alike(logic):
    shapes = [(m, n, g, x) for m in (1, 2, 5, 8) for n in (1, 3, 8) for g in (1, 2, 16) for x in (1, 2, 8)]
    walk = """argument.map(([order, tilesM, tilesN, ...rest]) =>
        Array.from({ length: tilesM * tilesN }, (_, item) => m.ORDERS[order](item, tilesM, tilesN, ...rest)))"""
    asked = [[order, *shape] for order in tiling.ORDERS for shape in shapes]
    found = logic("tile_map", walk, asked)
    for (order, m, n, g, x), tiles in zip(asked, found, strict=True):
        assert [tuple(tile) for tile in tiles] == [KERNEL_ORDERS[order](item, m, n, g, x) for item in range(m * n)]


def test_both_languages_cut_alike(logic):
    asked = [[[70, 0, 16, 1], block, padded] for block in tiling.BLOCKS for padded in (False, True)]
    found = logic("tile_map", "argument.map((a) => m.cut(...a))", asked)
    assert found == [[vars(one) for one in cut(load, block, padded=padded)] for load, block, padded in asked]


def test_a_tile_that_several_items_come_to_is_running_if_one_is(logic):
    now = {"kind": "wave", "launch": 1, "wave": 2}
    visits = {"before": (0, 9), "past": (1, 1), "now": (1, 2), "later": (1, 3), "next": (2, 0)}
    visits = {name: {"launch": launch, "wave": wave} for name, (launch, wave) in visits.items()}
    asked = [[], ["before"], ["past"], ["now"], ["later"], ["next"], ["past", "later"], ["past", "now", "later"]]
    found = logic(
        "tile_map",
        "argument[1].map((v) => m.stateOfTile(v, argument[0]))",
        [now, [[visits[n] for n in a] for a in asked]],
    )
    assert found == ["never", "done", "done", "running", "waiting", "waiting", "done", "running"]
    ends = [{"kind": "end", "launch": 2, "wave": 0}, {"kind": "launch", "launch": 1, "wave": 0}]
    found = logic(
        "tile_map",
        "argument[0].map((now) => argument[1].map((v) => m.stateOfTile([v], now)))",
        [ends, [visits["before"], visits["past"]]],
    )
    assert found == [["done", "done"], ["done", "waiting"]]


def test_times_and_shares_are_written_alike(logic):
    values = [0.0, 1.0, 7.25, 1200.5, 999999.75, 2.0**40]
    assert logic("tile_map", "argument.map(m.plain)", values) == [tiling.plain(value) for value in values]
    pairs = [
        [part / 4, whole / 4] for whole in (0, 1, 8, 200, 132 * 7) for part in range(0, whole + 1, 1 + whole // 99)
    ]
    assert logic("tile_map", "argument.map((a) => m.perCent(...a))", pairs) == [tiling.per_cent(*a) for a in pairs]


PLAYER_TRAITS = ("categories", "traces", "first", "second", "brush", "search", "bar")


def made_up_trace(rng):
    """Events of a tenth of a nanosecond up to a second, on up to four lanes; some traces have none."""
    about = dict.fromkeys(ABOUT, "?") | {"shape": {"tokens": 4}, "versions": {"torch": "2"}}
    lanes = rng.sample(["CPU", "CPU thread 2", "GPU stream 7", "GPU stream 13"], rng.randint(1, 4))
    events, scale = [], rng.choice([0.01, 1.0, 1e5])
    for lane in lanes:
        at = rng.random()
        for _ in range(rng.choice([0, 1, 8])):
            long = scale * rng.choice([0.0, 0.0001, 1.0, 7.5, rng.random()])
            work = [rng.choice([None, 0, 1, rng.randint(1, 10**13)]) for _ in range(2)]
            name = rng.choice(["aten::mm", "Silu<b>", "nvjet MM"])
            events.append(TraceEvent(name, rng.choice(CATEGORIES), lane, at, long, *work))
            at += long + scale * rng.choice([0.0, 0.0, 0.5])
    bare = {"unprofiled_us": rng.uniform(0.1, 1e6)} if rng.random() < 0.6 else {}
    return Trace(about | {"kind": rng.choice(["cpu", "cuda"]), "device": "a desk"} | bare, events)


def player_states(count):
    """Pairs of such traces, one alone, one twice; brushes anywhere, words that are found and not, every kind of bar."""
    rng = random.Random(0)
    pool = [made_up_trace(rng) for _ in range(30)]
    for number in range(count):
        traces = dict(zip(("one", "two", "three"), rng.sample(pool, 3), strict=True))
        floors = {name: rng.uniform(0.001, 1e6) for name in traces if rng.random() < 0.5}
        chosen = {"first": rng.choice([*traces]), "second": rng.choice([*traces, ""])}
        longest = max(trace.span_us for trace in traces.values())
        brush = sorted(rng.uniform(0, 1.2 * longest + 1) for _ in range(2)) if number % 3 else ()
        search = rng.choice(["", "mm", "SILU", "none"])
        widget = TracePlayer(traces, floors_us=floors, **chosen, brush=brush, search=search)
        sides = [chosen["first"], *([chosen["second"]] if chosen["second"] else [])]
        side = rng.randrange(len(sides))
        if traces[sides[side]].events:
            widget.bar = [side, rng.randrange(len(traces[sides[side]].events))]
        yield widget


def test_trace_player_counts_and_says_the_same(logic):
    widgets = list(player_states(80))
    states = [{name: getattr(widget, name) for name in PLAYER_TRAITS} for widget in widgets]
    asked = """argument.map((s) => [m.windowOf(s), m.tally(s), m.summarise(s), m.sayBar(s),
        m.shownOf(s).map((trace) => m.rank(trace, ...m.windowOf(s), s.categories))])"""
    for widget, (window, tallies, sentence, bar, rows) in zip(
        widgets, logic("trace_player", asked, states), strict=True
    ):
        assert tuple(window) == widget.window_ns and tallies == widget.tally()
        assert (sentence, bar) == (widget.summary(), widget.say_bar())
        assert [some[: player.MOST_ROWS] for some in rows] == [widget.top(side) for side in range(len(rows))]
    said = " ".join(widget.summary() + widget.say_bar() for widget in widgets)
    for part in (
        "over by then",
        "nothing was recorded",
        "roofline",
        "in no bar",
        "as many FLOPs",
        "not counted",
        "Without the profiler A",
        "TFL",
    ):
        assert part in said, part


def test_bars_are_laid_out_by_their_time(logic):
    """Whatever the width: the boxes of a category cover what its time is worth, and share pixels without overlap."""
    widgets = [widget for widget in player_states(20) if widget.traces[0]["events"]]
    asked = [[widget.traces[0], width] for widget in widgets for width in (3, 40, 1000)]
    lay = """argument.map(([trace, width]) =>
        m.layOut(m.cover(trace.events, 0, Math.max(1, trace.span)), 0, Math.max(1, trace.span), width, new Set([0])))"""
    for (trace, width), boxes in zip(asked, logic("trace_player", lay, asked), strict=True):
        span = max(1, trace["span"])
        covered = [*player.cover(trace["events"], 0, span)]
        for hit in (False, True):
            for category in range(len(CATEGORIES)):
                time = sum(t - f for event, f, t in covered if event[1] == category and (event[0] == 0) == hit)
                area = sum(wide * high for kind, found, _, _, wide, high in boxes if (kind, found) == (category, hit))
                assert area == pytest.approx(time * width / span, rel=1e-9, abs=1e-9)
        assert all(0 <= x <= width and -1e-9 <= y and y + high <= 1 + 1e-9 for _, _, x, y, _, high in boxes)
        assert all(wide >= 1 for *_, wide, _ in boxes) and len(boxes) <= (2 * len(CATEGORIES) + 1) * (width + 1)


def test_keys_lead_through_the_bars_and_the_time(logic):
    about = dict.fromkeys(ABOUT, "?") | {"kind": "cuda", "shape": {}, "versions": {}}
    lanes = {"CPU": [0.0, 10.0, 20.0], "GPU stream 7": [5.0, 15.0, 90.0]}
    events = [TraceEvent("x", "other", lane, at, 2.0) for lane, starts in lanes.items() for at in starts]
    widget = TracePlayer({"one": Trace(about | {"call_us": 100.0}, events)})  # bars 0, 2, 4 and 1, 3, 5 in time
    state = {name: getattr(widget, name) for name in PLAYER_TRAITS}
    keys = [("ArrowRight", 1), ("ArrowRight", 3), ("ArrowUp", 2), ("ArrowUp", 2), ("Home", 0), ("ArrowLeft", 0)]
    keys += [("End", 4), ("ArrowRight", 4), ("ArrowDown", 3), ("End", 5), ("ArrowDown", 5)]
    walk = "argument[1].map((key) => { const n = m.moveBar(argument[0], 0, key); argument[0].bar = [0, n]; return n; })"
    assert logic("trace_player", walk, [state, [key for key, _ in keys]]) == [number for _, number in keys]
    assert logic("trace_player", walk, [state, ["End"]]) == [5], "with no bar to start from"
    found = logic(
        "trace_player",
        """[m.zoom(argument, 0.5, 20e3), m.zoom({ ...argument, brush: [10, 60] }, 2, null), m.brushOf(-5, 1e9, 100e3),
            m.brushOf(40e3, 40e3, 100e3), m.zoom(argument, 1e-9, 0), m.follow({ ...argument, brush: [0, 10] },
            argument.traces[0].events[5]), m.follow({ ...argument, brush: [4, 10] }, argument.traces[0].events[1])]""",
        state,
    )
    assert found == [[10, 60], [0, 85], [], [40, 40.02], [0, 0.02], [86, 96], [4, 10]]


def test_ticks_are_round_and_not_too_many(logic):
    asked = [
        [start, start + span, most]
        for start in (0, 12_345)
        for span in (1, 30, 999, 10**6, 7 * 10**9)
        for most in (1, 9)
    ]
    for (start, stop, most), ticks in zip(
        asked, logic("trace_player", "argument.map((a) => m.ticksOf(...a))", asked), strict=True
    ):
        assert all(start <= tick <= stop for tick in ticks) and len(ticks) <= most + 1
        steps = {after - before for before, after in pairwise(ticks)}
        assert len(steps) <= 1 and all(str(step)[0] in "125" and float(str(step)[1:] or 0) == 0 for step in steps)
