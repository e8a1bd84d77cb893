"""Dispatch by one-hot products and by an index table: against a loop in float64, each other, and the FLOP counter.

Edges: no tokens, no room, an expert with nothing, everyone at one expert, empty slots; and what is refused.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import moe_lab as ml
from moe_lab import Routing, expert_mlp, flop_counter, route
from moe_lab.activations import ACTIVATIONS, activate
from moe_lab.dispatch import (
    DISPATCHES,
    assign_places,
    capacity_mlp,
    carry,
    expert_flops,
    index_table,
    one_hot_combine,
    one_hot_dispatch,
    one_hot_flops,
    table_combine,
    table_dispatch,
    table_flops,
)
from moe_lab.inputs import SPREADS, make_layer_inputs
from moe_lab.routers import expert_capacity


def oracle_table(experts, num_experts, capacity):
    """Fill places one assignment at a time, first choices before second ones; lists of token ids."""
    queues = [[] for _ in range(num_experts)]
    for slot in range(experts.shape[1]):
        for token in range(experts.shape[0]):
            if experts[token, slot] >= 0:
                queues[experts[token, slot]].append(token)
    return [queue + [-1] * (capacity - len(queue)) for queue in queues]


def oracle_mlp(x, routing, w_gate_up, w_down, activation):
    """One token and one slot at a time, in float64."""
    y = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(routing.tokens):
        for slot in range(routing.slots):
            expert = int(routing.experts[token, slot])
            if expert >= 0:
                hidden = activate(w_gate_up[expert].double() @ x[token].double(), activation)
                y[token] += routing.weights[token, slot].double() * (w_down[expert].double() @ hidden)
    return y


def outputs_and_gradients(layer, inputs):
    """The output and four gradients of a layer(x, routing, w_gate_up, w_down)."""
    leaves = [inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down]
    x, weights, w_gate_up, w_down = (leaf.clone().requires_grad_() for leaf in leaves)
    y = layer(x, Routing.trusted(inputs.routing.experts, weights, inputs.routing.num_experts), w_gate_up, w_down)
    return [y, *torch.autograd.grad(y, (x, weights, w_gate_up, w_down), inputs.dy)]


def least_capacity(routing):
    return int(routing.load.max())


sizes = st.fixed_dictionaries(
    {
        "tokens": st.integers(0, 12),
        "num_experts": st.integers(1, 6),
        "spread": st.sampled_from(SPREADS),
        "empty_slots": st.sampled_from([0.0, 0.4, 1.0]),
        "seed": st.integers(0, 99),
    }
)


def draw_inputs(data, sizes, **options):
    top_k = data.draw(st.integers(1, sizes["num_experts"]), label="top_k")
    inputs = make_layer_inputs(d_model=4, d_expert=3, top_k=top_k, **sizes, **options)
    return inputs, least_capacity(inputs.routing) + data.draw(st.integers(0, 3), label="spare")


@given(sizes, st.data())
@settings(max_examples=80, deadline=None)
def test_places_are_those_of_a_queue(sizes, data):
    inputs, capacity = draw_inputs(data, sizes)
    routing = inputs.routing
    want = oracle_table(routing.experts, routing.num_experts, capacity)
    assert index_table(routing, capacity).tolist() == want
    places = assign_places(routing, capacity)
    assert torch.equal(places < 0, routing.experts < 0), "a place for each assignment, none for an empty slot"
    for token, slot in (places >= 0).nonzero().tolist():
        expert, position = divmod(int(places[token, slot]), capacity)
        assert expert == routing.experts[token, slot]
        assert want[expert][position] == token


@given(sizes, st.data())
@settings(max_examples=80, deadline=None)
def test_both_dispatches_carry_the_same_rows(sizes, data):
    inputs, capacity = draw_inputs(data, sizes)
    by_product, combine_weights = one_hot_dispatch(inputs.x, inputs.routing, capacity)
    by_table, places = table_dispatch(inputs.x, inputs.routing, capacity)
    assert torch.equal(by_product, by_table), "a copy has no rounding"
    for expert, row in enumerate(index_table(inputs.routing, capacity).tolist()):
        for position, token in enumerate(row):
            want = inputs.x[token] if token >= 0 else torch.zeros(4)
            assert torch.equal(by_table[expert, position], want)
    back = one_hot_combine(by_product, combine_weights)
    torch.testing.assert_close(back, table_combine(by_table, places, inputs.routing.weights))
    # experts that answer with what they were given: every token gets itself, times the sum of its weights
    torch.testing.assert_close(back, inputs.x * inputs.routing.weights.sum(dim=1, keepdim=True))
    assert torch.equal(carry(inputs.x, inputs.routing, capacity, dispatch="one_hot"), back)
    torch.testing.assert_close(carry(inputs.x, inputs.routing, capacity), back)


@pytest.mark.parametrize("dispatch", DISPATCHES)
@given(sizes=sizes, data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_layer_is_the_loop(dispatch, sizes, data):
    inputs, capacity = draw_inputs(data, sizes, dtype=torch.float64)
    got = outputs_and_gradients(lambda *a: capacity_mlp(*a, capacity, dispatch=dispatch), inputs)
    want = outputs_and_gradients(lambda *a: expert_mlp(*a, backend="loop"), inputs)
    for name, ours, exact in zip(("y", "dx", "dweights", "dw_gate_up", "dw_down"), got, want, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spread", SPREADS)
def test_the_layer_against_the_oracle(dispatch, activation, spread):
    inputs = make_layer_inputs(17, 6, 5, 4, 2, spread=spread, empty_slots=0.2, activation=activation)
    capacity = least_capacity(inputs.routing)
    y = capacity_mlp(*inputs.arguments, capacity, activation=activation, dispatch=dispatch)
    want = oracle_mlp(*inputs.arguments, activation)
    assert want.abs().max() > 0.1, "the comparison must not be of zeros"
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_gradcheck(dispatch):
    inputs = make_layer_inputs(6, 3, 2, 3, 2, empty_slots=0.3, dtype=torch.float64)
    assert int((inputs.routing.experts < 0).sum()) > 0
    capacity = least_capacity(inputs.routing) + 1

    def layer(x, weights, w_gate_up, w_down):
        routing = Routing.trusted(inputs.routing.experts, weights, 3)
        return capacity_mlp(x, routing, w_gate_up, w_down, capacity, dispatch=dispatch)

    leaves = (inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down)
    assert torch.autograd.gradcheck(layer, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize(("method", "top_k"), [("switch", 1), ("gshard", 2)])
def test_routers_with_a_capacity_fit_and_drop(dispatch, method, top_k):
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(3)) + torch.tensor([2.0, 0.0, 0.0, 0.0])
    options = {"capacity_factor": 1.0} | ({"random_second": False} if method == "gshard" else {})
    routing = route(logits, top_k, method, **options)
    assert int((routing.experts < 0).sum()) > 5
    inputs = make_layer_inputs(40, 5, 3, 4, top_k)
    x, _, w_gate_up, w_down = inputs.arguments
    capacity = expert_capacity(1.0, 40, top_k, 4)
    assert int(routing.load.max()) == capacity, "an expert is full to the last place"
    y = capacity_mlp(x, routing, w_gate_up, w_down, capacity, dispatch=dispatch)
    torch.testing.assert_close(y, expert_mlp(x, routing, w_gate_up, w_down, backend="loop"))
    unserved = (routing.experts < 0).all(dim=1)
    assert bool((y[unserved] == 0).all()) and bool((y[~unserved] != 0).any(dim=1).all())


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_no_tokens_and_no_room(dispatch):
    inputs = make_layer_inputs(0, 4, 3, 5, 2)
    for capacity in (0, 2):
        got = outputs_and_gradients(lambda *a, c=capacity: capacity_mlp(*a, c, dispatch=dispatch), inputs)
        assert [tuple(t.shape) for t in got] == [(0, 4), (0, 4), (0, 2), (5, 6, 4), (5, 4, 3)]
        assert all(bool((gradient == 0).all()) for gradient in got[1:])
    nobody = make_layer_inputs(3, 4, 3, 5, 2, empty_slots=1.0)
    got = outputs_and_gradients(lambda *a: capacity_mlp(*a, 0, dispatch=dispatch), nobody)
    assert got[0].shape == (3, 4) and all(bool((t == 0).all()) for t in got)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_a_weight_of_zero_still_learns(dispatch):
    """A mask made of the weights (weight > 0) would leave this token at home, and its router without a gradient."""
    inputs = make_layer_inputs(3, 4, 3, 2, 1)
    inputs.routing.weights[1, 0] = 0.0
    capacity = least_capacity(inputs.routing)
    _, _, dweights, _, _ = outputs_and_gradients(lambda *a: capacity_mlp(*a, capacity, dispatch=dispatch), inputs)
    _, _, want, _, _ = outputs_and_gradients(lambda *a: expert_mlp(*a, backend="loop"), inputs)
    assert float(want[1, 0].abs()) > 0.01
    torch.testing.assert_close(dweights, want)


def test_a_nan_stays_with_its_token_in_the_table_and_spreads_in_the_product():
    inputs = make_layer_inputs(8, 4, 3, 4, 1)
    inputs.x[2] = float("nan")
    capacity = least_capacity(inputs.routing)
    y = capacity_mlp(*inputs.arguments, capacity, dispatch="table")
    assert y.isnan().any(dim=1).nonzero().flatten().tolist() == [2]
    assert bool(capacity_mlp(*inputs.arguments, capacity, dispatch="one_hot").isnan().all())


def test_an_empty_slot_does_not_read_the_first_place():
    outputs = torch.tensor([[[float("nan")]], [[6.0]]])
    y = table_combine(outputs, torch.tensor([[1, -1]]), torch.tensor([[0.5, 0.0]]))
    assert y.tolist() == [[3.0]]


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_keeps_its_dtype_and_sums_in_float32(dispatch, dtype, tolerance):
    inputs = make_layer_inputs(30, 8, 6, 4, 3, dtype=dtype)
    assert inputs.routing.weights.dtype == torch.float32
    y = capacity_mlp(*inputs.arguments, least_capacity(inputs.routing), dispatch=dispatch)
    want = oracle_mlp(*inputs.arguments, "swiglu")
    assert y.dtype == dtype
    assert float((y.double() - want).norm() / want.norm()) < tolerance
    # 1 + 2^-13 has no half-precision twin: weights rounded to x's dtype would leave 1 - 1 = 0
    outputs, weights = torch.tensor([[[1.0], [-1.0]]], dtype=dtype), torch.tensor([[1.0 + 2.0**-13, 1.0]])
    if dispatch == "table":
        assert float(table_combine(outputs, torch.tensor([[0, 1]]), weights)) == 2.0**-13
    else:
        assert float(one_hot_combine(outputs, weights[None])) == 2.0**-13


shapes = st.tuples(*(st.integers(2, n) for n in (9, 5, 7, 6)))  # tokens, num_experts, d_model, d_expert


@given(shapes, st.integers(1, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_closed_forms_are_what_the_counter_counts(shape, spare, data):
    """Sizes from 2 on: einsum turns a dimension of 1 into a plain multiplication, which the counter does not see."""
    tokens, num_experts, d_model, d_expert = shape
    top_k = data.draw(st.integers(2, num_experts), label="top_k")
    activation = data.draw(st.sampled_from(ACTIVATIONS), label="activation")
    inputs = make_layer_inputs(tokens, d_model, d_expert, num_experts, top_k, activation=activation)
    capacity = least_capacity(inputs.routing) + spare
    experts = expert_flops(num_experts * capacity, d_model, d_expert, activation)
    carrying = {
        "one_hot": one_hot_flops(tokens, num_experts, capacity, d_model),
        "table": table_flops(tokens, top_k, d_model),
    }
    for dispatch, flops in carrying.items():
        with FlopCounterMode(display=False) as counter:
            capacity_mlp(*inputs.arguments, capacity, activation=activation, dispatch=dispatch)
        assert counter.get_total_flops() == flops + experts, dispatch
    rows = expert_flops(tokens * top_k, d_model, d_expert, activation)
    for backend in ("loop", "grouped"):
        with flop_counter() as counter:  # PyTorch's own does not look into an operator
            expert_mlp(*inputs.arguments, activation=activation, backend=backend)
        assert counter.total_flops == rows, backend


def test_each_half_of_the_one_hot_way_costs_the_same():
    inputs = make_layer_inputs(12, 6, 4, 3, 2)
    capacity = least_capacity(inputs.routing)
    with FlopCounterMode(display=False) as there:
        rows, combine_weights = one_hot_dispatch(inputs.x, inputs.routing, capacity)
    with FlopCounterMode(display=False) as back:
        one_hot_combine(rows, combine_weights)
    assert there.get_total_flops() == back.get_total_flops() == 2 * 12 * 3 * capacity * 6
    with FlopCounterMode(display=False) as there:
        table_dispatch(inputs.x, inputs.routing, capacity)
    assert there.get_total_flops() == 0


def test_experts_cancel_and_tokens_count_twice():
    def moving(tokens, num_experts):
        return one_hot_flops(tokens, num_experts, expert_capacity(1.25, tokens, 1, num_experts), 16)

    assert moving(1024, 8) == moving(1024, 64) == 4 * 1280 * 1024 * 16
    assert moving(2048, 8) == 4 * moving(1024, 8)


ROUTING = Routing(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), 2)


@pytest.mark.parametrize("function", [one_hot_dispatch, table_dispatch])
@pytest.mark.parametrize(
    ("x", "capacity", "error", "says"),
    [
        (
            torch.zeros(3, 4),
            1,
            ValueError,
            r"capacity must be at least the largest load, 2 \(expert 0\), got 1; .*switch",
        ),
        (torch.zeros(3, 4), -1, ValueError, r"capacity must be at least the largest load, 2 \(expert 0\), got -1"),
        (torch.zeros(3, 4), 2.0, TypeError, r"capacity must be a whole number, got 2.0"),
        (torch.zeros(3, 4), True, TypeError, r"capacity must be a whole number, got True"),
        (torch.zeros(2, 4), 2, ValueError, r"x must be \(tokens=3, d_model\) like the routing, got \(2, 4\)"),
        (torch.zeros(3), 2, ValueError, r"x must be \(tokens=3, d_model\) like the routing, got \(3,\)"),
        (torch.zeros(3, 4).long(), 2, TypeError, r"x must be a floating-point tensor, got torch.int64"),
        ([[0.0]], 2, TypeError, r"x must be a floating-point tensor, got list"),
        (torch.zeros(3, 4, device="meta"), 2, ValueError, r"routing is on cpu and x on meta"),
    ],
)
def test_dispatch_refuses(function, x, capacity, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        function(x, ROUTING, capacity)


@pytest.mark.parametrize("function", [assign_places, index_table])
def test_places_refuse(function, unchecked_shapes):
    with pytest.raises(TypeError, match="routing must be a Routing, got Tensor"):
        function(torch.zeros(3, 1), 2)
    with pytest.raises(ValueError, match="capacity must be at least the largest load, 2"):
        function(ROUTING, 1)
    nobody = Routing(torch.tensor([[-1]]), torch.zeros(1, 1), 2)
    with pytest.raises(ValueError, match=r"capacity must be at least the largest load, 0 .*got -1"):
        function(nobody, -1)


def test_carrying_refuses(unchecked_shapes):
    with pytest.raises(ValueError, match="dispatch must be one of one_hot, table; got 'sort'"):
        carry(torch.zeros(3, 4), ROUTING, 2, dispatch="sort")


def test_dispatch_wants_a_routing(unchecked_shapes):
    for function in (one_hot_dispatch, table_dispatch):
        with pytest.raises(TypeError, match="routing must be a Routing, got NoneType"):
            function(torch.zeros(3, 4), None, 2)


def test_combine_refuses(unchecked_shapes):
    outputs = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"combine_weights must be .*got \(5, 2, 2\) and \(2, 3, 4\)"):
        one_hot_combine(outputs, torch.zeros(5, 2, 2))
    with pytest.raises(
        ValueError, match=r"places and weights must both be \(tokens, slots\), got \(5, 1\) and \(5, 2\)"
    ):
        table_combine(outputs, torch.zeros(5, 1).long(), torch.zeros(5, 2))
    for place in (6, -2):
        with pytest.raises(ValueError, match=r"places must lie in -1..5 \(num_experts \* capacity = 6\), found"):
            table_combine(outputs, torch.tensor([[place]]), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"dispatch": "sort"}, ValueError, r"dispatch must be one of one_hot, table; got 'sort'"),
        ({"activation": "tanh"}, ValueError, r"activation must be one of swiglu, .*; got 'tanh'"),
        ({"capacity": 1}, ValueError, r"capacity must be at least the largest load, 2"),
        ({"x": torch.zeros(2, 4)}, ValueError, r"routing has 3 tokens and x has 2"),
        ({"w_down": torch.zeros(5, 4, 3)}, ValueError, r"routing has num_experts=2 and w_down 5"),
        ({"routing": None}, TypeError, r"routing must be a Routing, got NoneType"),
    ],
)
def test_the_layer_refuses(change, error, says, unchecked_shapes):
    arguments = {
        "x": torch.zeros(3, 4),
        "routing": ROUTING,
        "w_gate_up": torch.zeros(2, 6, 4),
        "w_down": torch.zeros(2, 4, 3),
        "capacity": 2,
    }
    with pytest.raises(error, match=says):
        capacity_mlp(**{**arguments, **change})


def test_counts_refuse_what_is_no_size(unchecked_shapes):
    with pytest.raises(ValueError, match="capacity must be a whole number of at least 0, got -1"):
        one_hot_flops(4, 2, -1, 8)
    with pytest.raises(ValueError, match=r"slots must be a whole number of at least 0, got 1.5"):
        table_flops(4, 1.5, 8)
    with pytest.raises(ValueError, match="rows must be a whole number of at least 0, got True"):
        expert_flops(True, 8, 8)
    with pytest.raises(ValueError, match="activation must be one of"):
        expert_flops(4, 8, 8, "tanh")


def test_the_layer_of_the_library_is_the_same_function():
    """From hidden states through the router: what the lesson does step by step."""
    layer = ml.MoE(d_model=8, d_expert=6, num_experts=4, top_k=2, renormalise=True)
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(5))
    y = layer(x)
    routing = layer.routing
    for dispatch in DISPATCHES:
        ours = capacity_mlp(x, routing, layer.w_gate_up, layer.w_down, int(routing.load.max()), dispatch=dispatch)
        torch.testing.assert_close(ours, y)
