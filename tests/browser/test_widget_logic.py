"""The arithmetic in each widget's JavaScript is that of its Python class."""

import random

import pytest

from moe_lab.widgets import RouteOneBatch, TextView
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
    widgets = list(batch_states(200))
    names = ("logits", "num_experts", "top_k", "score", "temperature", "renormalise")
    states = [{name: getattr(widget, name) for name in names} for widget in widgets]
    results = logic(
        "route_one_batch",
        "argument.map((s) => { const r = m.route(s); return [r, m.loadOf(r, s.num_experts), m.summarise(s)]; })",
        states,
    )
    assert len(results) == 200
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
    assert logic("route_one_batch", "argument.map(m.twoDecimals)", values) == [f"{value:.2f}" for value in values]


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
    views = [*reading_states(200), TextView(lambda text: [], "")]
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
