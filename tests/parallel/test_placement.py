"""Placement: EPLB's own example, what its greedy steps promise, and that replicas change no output and no gradient."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe_lab import Routing, expert_mlp
from moe_lab.inputs import SPREADS, make_layer_inputs
from moe_lab.parallel.placement import Placement, pack, place_experts, replicate

LOADS = st.integers(0, 9) | st.integers(0, 10**6) | st.floats(0, 1e6, allow_subnormal=False)


@st.composite
def clusters(draw):
    """Loads, and a cluster that can hold them: every argument of `place_experts`."""
    num_nodes = draw(st.integers(1, 3))
    num_groups = draw(st.integers(1, 3)) * draw(st.sampled_from([1, num_nodes]))
    num_devices = num_nodes * draw(st.integers(1, 3))
    num_experts = num_groups * draw(st.integers(1, 4))
    each = -(-num_experts // num_devices) + draw(st.integers(0, 2))
    loads = torch.tensor(draw(st.lists(LOADS, min_size=num_experts, max_size=num_experts)), dtype=torch.float64)
    return loads, each * num_devices, num_devices, num_nodes, num_groups


def test_the_example_of_eplb():
    """Loads and answer of its README: two layers, 12 experts in 4 groups, 16 replicas on 2 nodes of 4 devices."""
    loads = torch.tensor(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ]
    )
    first, second = place_experts(loads, 16, 8, num_nodes=2, num_groups=4)
    assert first.physical_to_logical.tolist() == [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]
    assert second.physical_to_logical.tolist() == [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]
    assert first.device_load(loads[0]).tolist() == [121.5, 86.5, 125.0, 113.0, 147.5, 131.5, 156.0, 152.0]


def test_ties_go_to_the_lower_number():
    assert replicate([2.0, 4.0, 4.0, 2.0], 8) == [0, 1, 2, 3, 1, 2, 0, 1]
    assert pack([1.0] * 6, 3) == [[0, 3], [1, 4], [2, 5]]
    assert pack([1.0] * 6, 2) == [[0, 2, 4], [1, 3, 5]]
    assert pack([1.0, 3.0, 2.0], 3) == [[0], [1], [2]], "one item a pack stays where it is"
    assert pack([1.0, 3.0, 2.0], 1) == [[1, 2, 0]]


@given(st.lists(LOADS, min_size=1, max_size=4), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_no_other_replication_has_a_smaller_largest_share(loads, extra):
    replicas = replicate(loads, len(loads) + extra)
    assert len(replicas) == len(loads) + extra
    assert replicas[: len(loads)] == list(range(len(loads)))
    got = max(load / replicas.count(expert) for expert, load in enumerate(loads))
    ways = itertools.product(range(1, extra + 2), repeat=len(loads))
    ways = [way for way in ways if sum(way) == len(replicas)]
    assert got == min(max(load / count for load, count in zip(loads, way, strict=True)) for way in ways)


@given(st.integers(1, 5), st.integers(1, 5), st.data())
@settings(max_examples=150, deadline=None)
def test_packs_hold_everything_and_differ_by_one_item_at_most(num_packs, each, data):
    loads = data.draw(st.lists(LOADS, min_size=num_packs * each, max_size=num_packs * each))
    packs = pack(loads, num_packs)
    assert [len(items) for items in packs] == [each] * num_packs
    assert sorted(item for items in packs for item in items) == list(range(len(loads)))
    weights = [sum(loads[item] for item in items) for items in packs]
    assert max(weights) - min(weights) <= max(loads) * (1 + 1e-12) + 1e-12 * sum(loads)


@given(clusters())
@settings(max_examples=100, deadline=None)
@example((torch.zeros(4, dtype=torch.float64), 8, 4, 2, 2))
@example((torch.tensor([5.0], dtype=torch.float64), 3, 3, 3, 1))
def test_place_experts_on_any_cluster(cluster):
    loads, num_replicas, num_devices, num_nodes, num_groups = cluster
    placement = place_experts(loads, num_replicas, num_devices, num_nodes=num_nodes, num_groups=num_groups)
    experts = placement.physical_to_logical
    assert len(experts) == placement.num_replicas == num_replicas
    assert torch.bincount(placement.devices).tolist() == [num_replicas // num_devices] * num_devices
    assert bool((placement.devices.diff() >= 0).all()), "a device holds a block"
    assert sorted(set(experts.tolist())) == list(range(len(loads)))
    for expert, physical in enumerate(placement.logical_to_physical.tolist()):
        assert [p for p in physical if p >= 0] == (experts == expert).nonzero().flatten().tolist()

    hierarchical = num_groups % num_nodes == 0
    num_nodes, num_groups = (num_nodes, num_groups) if hierarchical else (1, 1)
    device_load = placement.device_load(loads)
    torch.testing.assert_close(device_load.sum(), loads.sum(), rtol=1e-12, atol=1e-9)
    slack = 1e-12 * float(loads.sum())
    shares = (loads / placement.replicas_per_expert)[experts].view(num_nodes, -1)
    by_node = device_load.view(num_nodes, -1)
    spread = by_node.amax(dim=1) - by_node.amin(dim=1)
    assert bool((spread <= shares.amax(dim=1) + slack).all()), "devices of a node differ by one replica at most"
    node_load, group_load = by_node.sum(dim=1), loads.view(num_groups, -1).sum(dim=1)
    assert float(node_load.max() - node_load.min()) <= float(group_load.max()) + slack, "nodes differ by one group"
    groups = (experts // (len(loads) // num_groups)).view(num_nodes, -1).tolist()
    assert sum(len(set(node)) for node in groups) == num_groups, "no group is on two nodes"


def test_global_placement_ignores_groups_and_nodes():
    loads = torch.tensor([9, 1, 1, 1, 1, 1])
    alone = place_experts(loads, 8, 4)
    assert place_experts(loads, 8, 4, num_nodes=2, num_groups=3).physical_to_logical.equal(alone.physical_to_logical)
    assert alone.replicas_per_expert.tolist() == [3, 1, 1, 1, 1, 1]


def test_layers_are_placed_one_by_one_whatever_the_unit_and_the_dtype():
    loads = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    for layer, placement in zip(loads, place_experts(loads, 12, 4), strict=True):
        for same in (layer, layer.float(), layer.bfloat16(), layer * 8.0, layer / 1024):
            assert place_experts(same, 12, 4).physical_to_logical.equal(placement.physical_to_logical)


def test_greedy_can_lose_to_a_lucky_order():
    """Why nothing promises that a placement is the best: here experts in their plain order are perfectly even."""
    loads = torch.tensor([3, 3, 0, 2, 2, 2])
    assert Placement(torch.arange(6), 6, 2).device_load(loads).tolist() == [6, 6]
    assert sorted(place_experts(loads, 6, 2).device_load(loads).tolist()) == [5, 7]


def run(inputs, routing, weights, lay_out):
    """Output and gradients of x, routing weights and both weights, the replicas of which share their expert's."""
    leaves = [leaf.clone().requires_grad_() for leaf in (inputs.x, weights, inputs.w_gate_up, inputs.w_down)]
    x, weights, w_gate_up, w_down = leaves
    y = expert_mlp(x, routing(weights), lay_out(w_gate_up), lay_out(w_down))
    return [y, *torch.autograd.grad(y, leaves, inputs.dy, allow_unused=True, materialize_grads=True)]


@given(
    tokens=st.integers(0, 17),
    num_experts=st.integers(1, 6),
    spread=st.sampled_from(SPREADS),
    empty=st.sampled_from([0.0, 0.4, 1.0]),
    start=st.integers(0, 5),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
@example(tokens=0, num_experts=3, spread="uniform", empty=0.0, start=0, data=None)
@example(tokens=17, num_experts=4, spread="one_expert", empty=0.0, start=1, data=None)
def test_replicas_change_no_output_and_no_gradient(tokens, num_experts, spread, empty, start, data):
    top_k = data.draw(st.integers(1, num_experts)) if data else 1
    extra = data.draw(st.lists(st.integers(0, num_experts - 1), max_size=5)) if data else [0, 0]
    order = data.draw(st.permutations([*range(num_experts), *extra])) if data else [*range(num_experts), *extra]
    placement = Placement(torch.tensor(order), num_experts, 1)
    inputs = make_layer_inputs(
        tokens, 5, 3, num_experts, top_k, spread=spread, empty_slots=empty, dtype=torch.float64, seed=tokens
    )
    logical = inputs.routing
    physical = placement.route(logical, start=start)

    checked = Routing(physical.experts, physical.weights, len(order), physical.top_k)  # looks at every value
    assert checked.weights is logical.weights
    assert physical.experts.shape == logical.experts.shape
    names = torch.cat([placement.physical_to_logical, torch.tensor([-1])])  # -1 reads the last
    assert names[physical.experts].equal(logical.experts)
    for expert in range(num_experts):
        replicas = (placement.physical_to_logical == expert).nonzero().flatten().tolist()
        turns = physical.experts[logical.experts == expert].tolist()
        assert turns == [replicas[(start + turn) % len(replicas)] for turn in range(len(turns))]
        loads = physical.load[replicas]
        assert int(loads.max() - loads.min()) <= 1

    def routed(experts, count):
        return lambda weights: Routing.trusted(experts, weights, count)

    want = run(inputs, routed(logical.experts, num_experts), logical.weights, lambda w: w)
    lay_out = lambda w: w[placement.physical_to_logical]  # noqa: E731
    got = run(inputs, routed(physical.experts, len(order)), logical.weights, lay_out)
    for name, ours, exact in zip(("y", "dx", "dweights", "dw_gate_up", "dw_down"), got, want, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_what_devices_get_is_what_was_expected_to_less_than_one_row_a_replica():
    inputs = make_layer_inputs(512, 4, 2, 16, 4, spread="skewed")
    load = inputs.routing.load
    plain = Placement(torch.arange(16), 16, 8)
    placement = place_experts(load, 24, 8)
    sent = placement.route(inputs.routing).load.view(8, -1).sum(dim=1)
    assert bool(((sent - placement.device_load(load)).abs() < 24 // 8).all())
    assert int(sent.max()) < float(plain.device_load(load).max())


def test_top_k_of_a_routing_goes_along():
    routing = Routing(torch.tensor([[0, 1, -1]]), torch.tensor([[0.5, 0.5, 0.0]]), 2, top_k=1)
    assert Placement(torch.tensor([0, 1, 1, 0]), 2, 2).route(routing).asked == routing.asked == 1


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(num_replicas=3), ValueError, r"num_replicas must be at least 4, got 3"),
        (dict(num_replicas=7), ValueError, r"num_devices must divide num_replicas=7, got 2"),
        (dict(num_devices=9), ValueError, r"num_devices must be in 1\.\.8, got 9"),
        (dict(num_devices=0), ValueError, r"num_devices must be in 1\.\.8, got 0"),
        (dict(num_groups=3), ValueError, r"num_groups must divide num_experts=4, got 3"),
        (dict(num_nodes=3, num_devices=4), ValueError, r"num_nodes must divide num_devices=4, got 3"),
        (dict(num_nodes=3), ValueError, r"num_nodes must be in 1\.\.2, got 3"),
        (dict(num_replicas=8.0), TypeError, r"num_replicas must be a whole number, at least 4; got 8\.0"),
        (dict(loads=[1, 2, 3, 4]), TypeError, r"loads must be a tensor of numbers, got list"),
        (dict(loads=torch.ones(4).bool()), TypeError, r"loads must be a tensor of numbers, got torch\.bool"),
        (dict(loads=torch.ones(4) * 1j), TypeError, r"loads must be a tensor of numbers, got torch\.complex64"),
        (dict(loads=torch.tensor([1, -2, 3, 4])), ValueError, r"finite and not negative, found -2\.0"),
        (dict(loads=torch.tensor([1, float("nan"), 3, 4])), ValueError, r"finite and not negative, found nan"),
        (dict(loads=torch.tensor([1, 2, 3, float("inf")])), ValueError, r"finite and not negative, found inf"),
        (
            dict(loads=torch.full((4,), 1e308, dtype=torch.float64)),
            ValueError,
            r"finite sum, found numbers up to 1e\+308",
        ),
        (dict(loads=torch.ones(0)), ValueError, r"loads must be \(num_experts,\) or .*, got \(0,\)"),
        (dict(loads=torch.ones(0, 4)), ValueError, r"loads must be \(num_experts,\) or .*, got \(0, 4\)"),
        (dict(loads=torch.ones(())), ValueError, r"loads must be \(num_experts,\) or .*, got \(\)"),
        (dict(loads=torch.ones(1, 2, 4)), ValueError, r"loads must be \(num_experts,\) or .*, got \(1, 2, 4\)"),
    ],
)
def test_place_experts_refuses(change, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        place_experts(**{**dict(loads=torch.ones(4), num_replicas=8, num_devices=2), **change})


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([0, 1], 2, 1), TypeError, r"physical_to_logical must be an int64 tensor, got list"),
        ((torch.ones(2), 2, 1), TypeError, r"physical_to_logical must be an int64 tensor, got torch\.float32"),
        ((torch.zeros(2, 2).long(), 1, 1), ValueError, r"physical_to_logical must be \(replicas,\).*got \(2, 2\)"),
        ((torch.zeros(0).long(), 1, 1), ValueError, r"physical_to_logical must be \(replicas,\).*got \(0,\)"),
        ((torch.tensor([0, 2]), 2, 1), ValueError, r"physical_to_logical must lie in 0\.\.1, found 2"),
        ((torch.tensor([0, -1]), 2, 1), ValueError, r"physical_to_logical must lie in 0\.\.1, found -1"),
        ((torch.tensor([0, 2, 0]), 3, 1), ValueError, r"every expert at least once, expert 1 is missing"),
        ((torch.tensor([0, 1, 0]), 2, 2), ValueError, r"num_devices must divide num_replicas=3, got 2"),
        ((torch.tensor([0]), 0, 1), ValueError, r"num_experts must be at least 1, got 0"),
    ],
)
def test_placement_refuses(arguments, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        Placement(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: p.device_load(torch.ones(3)), ValueError, r"loads must be \(num_experts=2,\), got \(3,\)"),
        (lambda p: p.device_load(torch.tensor([1.0, -1.0])), ValueError, r"not negative, found -1\.0"),
        (lambda p: p.route(None), TypeError, r"routing must be a Routing, got NoneType"),
        (
            lambda p: p.route(Routing(torch.tensor([[0]]), torch.ones(1, 1), 3)),
            ValueError,
            r"routing must be over num_experts=2 experts, got 3",
        ),
        (
            lambda p: p.route(Routing(torch.tensor([[0]]), torch.ones(1, 1), 2), start=-1),
            ValueError,
            r"start must be at least 0, got -1",
        ),
        (lambda p: replicate([], 2), ValueError, r"at least one expert"),
        (lambda p: replicate([1.0, 2.0], 1), ValueError, r"num_replicas must be at least 2, got 1"),
        (lambda p: pack([], 1), ValueError, r"at least one item"),
        (lambda p: pack([1.0, 2.0, 3.0], 2), ValueError, r"num_packs must divide the number of loads=3, got 2"),
    ],
)
def test_the_rest_refuses(call, error, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        call(Placement(torch.tensor([0, 1, 0]), 2, 3))
