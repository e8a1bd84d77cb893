"""The simulator's arithmetic, against sums written out by hand and a loop over single tokens."""

import dataclasses

import pytest
import torch

from moe_lab import Routing
from moe_lab.dispatch import expert_flops
from moe_lab.inputs import make_layer_inputs
from moe_lab.parallel.clusters import Bus, Cluster, Link
from moe_lab.parallel.published import (
    MEASURED_GIGABYTES_PER_S,
    compare_published,
    counted_copies,
    describe_published,
    draw_v3_routings,
)
from moe_lab.parallel.simulator import Wire, exchange_time, relay_copies, step_time
from moe_lab.parallel.traffic import Traffic, count_copies
from moe_lab.roofline import LayerShape

CLUSTER = Cluster("toy", 6, 2, Link("fast", 100.0, 1000.0, "toy"), Link("slow", 10.0, 3000.0, "toy"), 2.0, "toy")
SHARED = Cluster("shared", 8, 8, None, None, None, "toy", Bus(10.0, 1.0, 2.0, 8.0))
SHAPE = LayerShape(d_model=16, d_expert=8, num_experts=12, top_k=3)
WIRE = Wire.of_exchange(16, 3, 2, 4)


def draw(ranks, tokens=40, num_experts=12, top_k=3, spread="skewed", seed=0):
    sizes = tokens, 4, 4, num_experts, top_k
    return [make_layer_inputs(*sizes, spread=spread, empty_slots=0.1, seed=seed + r).routing for r in range(ranks)]


def random_bytes(ranks, seed=0):
    return torch.randint(0, 10**7, (ranks, ranks), generator=torch.Generator().manual_seed(seed))


def test_a_ranks_time_is_that_of_its_busier_link():
    sent = torch.zeros(6, 6, dtype=torch.int64)
    sent[0, 1], sent[0, 2], sent[3, 0], sent[4, 4] = 3_000_000, 100_000, 50_000, 10**9
    time = exchange_time(sent, CLUSTER)
    assert time.by_rank_ms.tolist() == pytest.approx([4.03, 1.03, 3.01, 3.005, 0.0, 0.0])
    assert (time.slowest, time.link, time.ms) == (0, "latency", pytest.approx(4.03))
    time = exchange_time(1000 * sent, CLUSTER)
    assert (time.slowest, time.link, time.ms) == (0, "fast", pytest.approx(34.0))
    sent[5, 0] = 10**9
    time = exchange_time(sent, CLUSTER)
    assert (time.slowest, time.link, time.ms) == (0, "slow", pytest.approx(4.0 + 100.005))
    assert "predicted: 104.005 ms on toy, rank 0 is slowest, slow binds" == time.describe()


def test_sending_and_receiving_are_symmetric():
    sent = random_bytes(6)
    time, turned = exchange_time(sent, CLUSTER), exchange_time(sent.T, CLUSTER)
    assert torch.equal(time.inside_send_ms, turned.inside_receive_ms)
    assert torch.equal(time.between_send_ms, turned.between_receive_ms)
    assert time.ms == turned.ms


def test_the_order_of_nodes_does_not_matter_nor_do_bytes_that_stay():
    sent = random_bytes(6)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    assert exchange_time(sent[order][:, order], CLUSTER).ms == pytest.approx(exchange_time(sent, CLUSTER).ms)
    assert exchange_time(sent + 10**9 * torch.eye(6, dtype=torch.int64), CLUSTER).ms == exchange_time(sent, CLUSTER).ms


def test_more_bytes_or_slower_links_never_take_less():
    sent, before = random_bytes(6), exchange_time(random_bytes(6), CLUSTER).ms
    for i in range(6):
        for j in range(6):
            more = sent.clone()
            more[i, j] += 10**6
            assert exchange_time(more, CLUSTER).ms >= before
    for name in ("inside", "between"):
        slower = dataclasses.replace(getattr(CLUSTER, name), gigabytes_per_s=1.0)
        assert exchange_time(sent, dataclasses.replace(CLUSTER, **{name: slower})).ms > before


def test_even_loads_are_the_mean_and_never_slower():
    even = torch.full((6, 6), 10**6)
    time = exchange_time(even, CLUSTER)
    assert time.even_ms == pytest.approx(time.ms) == pytest.approx(4.0 + 0.4)  # 4 MB to other nodes at 10 GB/s
    for seed in range(5):
        time = exchange_time(random_bytes(6, seed), CLUSTER)
        assert time.even_ms <= time.ms


def test_shared_cores_add_everything_up():
    sent = torch.tensor([[8, 1, 1], [2, 8, 2], [1, 1, 8]]) * 10**6
    time = exchange_time(sent, SHARED)
    assert time.ms == pytest.approx((10 + 6 * 1) / 1e3 + 8 / 2 + 24 / 8)
    assert time.link == "cores of the machine" and time.even_ms == time.ms


def relayed_token_by_token(routings, ranks, ranks_per_node):
    """Every token walked by itself."""
    hops = torch.zeros(ranks, ranks, dtype=torch.int64)
    for rank, routing in enumerate(routings):
        held = routing.num_experts // ranks
        for experts in routing.experts.tolist():
            goals = {expert // held for expert in experts if expert >= 0}
            for node in {goal // ranks_per_node for goal in goals}:
                relay = node * ranks_per_node + rank % ranks_per_node
                if node != rank // ranks_per_node:
                    hops[rank, relay] += 1
                for goal in goals:
                    if goal // ranks_per_node == node:
                        hops[relay, goal] += 1
    return hops


@pytest.mark.parametrize(("ranks", "ranks_per_node"), [(6, 2), (6, 3), (4, 1), (4, 4), (1, 1)])
def test_relays_are_those_of_a_walk(ranks, ranks_per_node):
    routings = draw(ranks)
    hops = relay_copies(routings, ranks, ranks_per_node)
    assert torch.equal(hops, relayed_token_by_token(routings, ranks, ranks_per_node))
    if ranks_per_node in (1, ranks):  # nothing to relay: the plain exchange, but for what has arrived already
        apart = ~torch.eye(ranks, dtype=torch.bool)
        assert torch.equal(hops[apart], count_copies(routings, ranks)[apart])


def test_a_token_crosses_once_a_node_and_node_limits_cut_that():
    free, limited = draw_v3_routings(16, tokens=64), draw_v3_routings(64, tokens=64)
    node = torch.arange(64) // 8
    crossing = relay_copies(limited, 64, 8)[node[:, None] != node[None, :]]
    plain = count_copies(limited, 64)[node[:, None] != node[None, :]]
    assert int(crossing.sum()) <= 4 * 64 * 64 and int(crossing.sum()) < int(plain.sum())
    assert int(relay_copies(free, 16, 8)[node[:16, None] != node[None, :16]].sum()) <= 16 * 64


@pytest.mark.parametrize("ranks_per_node", [0, 4, 7])
def test_refuses_nodes_that_do_not_divide_the_ranks(ranks_per_node):
    with pytest.raises(ValueError, match="ranks_per_node must"):
        relay_copies(draw(6), 6, ranks_per_node)


def test_wire_is_the_traffic_of_the_exchange():
    copies = torch.tensor([[3, 5], [2, 0]])
    traffic = Traffic(copies, d_model=16, slots=3, number_bytes=2, weight_bytes=4)
    assert torch.equal(copies * WIRE.dispatch, traffic.dispatch)
    assert torch.equal(copies.T * WIRE.combine, traffic.combine)
    assert torch.equal(copies * WIRE.answer_gradient + copies.T * WIRE.token_gradient, traffic.backward)
    assert Wire.of_fp8(7168) == Wire(7392, 14336, 7392, 14336)
    with pytest.raises(ValueError, match="combine must be"):
        Wire(1, -1, 1, 1)


@pytest.mark.parametrize("relayed", [False, True])
def test_a_step_is_exchanges_and_the_busiest_experts(relayed):
    routings = draw(6)
    step = step_time(routings, CLUSTER, SHAPE, WIRE, direction="training", relayed=relayed)
    copies = relay_copies(routings, 6, 2) if relayed else count_copies(routings, 6)
    sizes = (copies * WIRE.dispatch, copies.T * WIRE.combine, copies * WIRE.answer_gradient)
    ways = [exchange_time(sent, CLUSTER).ms for sent in (*sizes, copies.T * WIRE.token_gradient)]
    assert step.exchange_ms == pytest.approx(sum(ways))
    rows = sum(routing.load for routing in routings).view(6, 2).sum(dim=1)
    assert step.busiest_ms == pytest.approx(3 * expert_flops(int(rows.max()), 16, 8) / 2e9)
    assert step.ms == pytest.approx(step.exchange_ms + step.busiest_ms)
    forward = step_time(routings, CLUSTER, SHAPE, WIRE, relayed=relayed)
    assert forward.exchange_ms == pytest.approx(sum(ways[:2])) and forward.busiest_ms == pytest.approx(
        step.busiest_ms / 3
    )


def test_overlap_hides_the_shorter_part():
    routings, slow = draw(6), dataclasses.replace(CLUSTER, tflop_s=1e-6)
    for cluster in (CLUSTER, slow):
        steps = [step_time(routings, cluster, SHAPE, WIRE, overlap=share) for share in (0, 0.5, 1)]
        longer, shorter = max(steps[0].exchange_ms, steps[0].busiest_ms), min(steps[0].exchange_ms, steps[0].busiest_ms)
        assert [step.ms for step in steps] == pytest.approx([longer + shorter, longer + shorter / 2, longer])
        assert all(step.even_ms <= step.ms for step in steps)
        assert steps[1].describe().startswith("predicted: ") and "overlap 50%" in steps[1].describe()


def test_even_routings_gain_nothing_from_balance():
    experts = (torch.arange(36)[:, None] * 2 + torch.arange(2)) % 12
    routing = Routing(experts, torch.full((36, 2), 0.5), 12)
    step = step_time([routing] * 6, CLUSTER, dataclasses.replace(SHAPE, top_k=2), WIRE)
    assert step.even_ms == pytest.approx(step.ms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "backward"}, "direction must be one of forward, training"),
        ({"overlap": 1.5}, r"overlap must lie in 0..1, got 1.5"),
        ({"overlap": -0.5}, "overlap must be a finite number of at least 0"),
        ({"cluster": SHARED}, "cluster must say its tflop_s, shared does not"),
        ({"shape": LayerShape(16, 8, 24, 3)}, "routings must be over num_experts=24, got 12"),
    ],
)
def test_refuses_a_step_that_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        step_time(**{"routings": draw(6), "cluster": CLUSTER, "shape": SHAPE, "wire": WIRE, **options})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (torch.zeros(7, 7, dtype=torch.int64), r"bytes_sent must be of 1..6 ranks on toy, got 7"),
        (torch.zeros(0, 0, dtype=torch.int64), r"bytes_sent must be of 1..6 ranks"),
        (torch.tensor([[0, -1], [0, 0]]), "bytes_sent must not be negative, found -1"),
        (torch.zeros(2, 3, dtype=torch.int64), r"bytes_sent must be \(ranks, ranks\), got \(2, 3\)"),
    ],
)
def test_refuses_bytes_that_make_no_sense(sent, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        exchange_time(sent, CLUSTER)


def test_published_exchange_counts_bytes_as_its_makers_do():
    for row in (rows := compare_published((8, 16), tokens=16)):
        routings = draw_v3_routings(row.ranks, 16)
        goals = [[set((experts // (256 // row.ranks)).tolist()) for experts in one.experts] for one in routings]
        stations = [{goal // 8 if row.ranks > 8 else goal for goal in token} for one in goals for token in one]
        copies = sum(map(len, stations)) / row.ranks
        assert copies == counted_copies(routings)
        assert row.counted_bytes == copies * (7168 + 4 * 56 if row.way == "dispatch" else 2 * 7168)
        assert row.measured_gigabytes_per_s == MEASURED_GIGABYTES_PER_S[row.ranks][row.way]
        assert row.predicted_gigabytes_per_s * row.predicted_ms == pytest.approx(row.counted_bytes / 1e6)
    text = describe_published(rows).splitlines()
    assert len(text) == 5 and all("predicted" in line and "published" in line for line in text)


@pytest.mark.parametrize("ranks", [4, 12, 24])
def test_refuses_ranks_that_v3s_experts_do_not_fit(ranks):
    with pytest.raises(ValueError, match="ranks must be"):
        draw_v3_routings(ranks, 1)
