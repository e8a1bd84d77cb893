"""All-to-all board in Python: its numbers are the library's, what it lets the reader find is there, its traits fit."""

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
import traitlets

from moe_lab import route
from moe_lab.parallel.clusters import CLUSTERS, Bus, Cluster
from moe_lab.parallel.placement import place_experts
from moe_lab.parallel.simulator import Wire, step_time
from moe_lab.parallel.traffic import Traffic, count_copies
from moe_lab.roofline import LayerShape
from moe_lab.widgets import AllToAllBoard
from moe_lab.widgets.all_to_all_board import draw_logits, in_order, place_replicas

DESK = Cluster("desk", 4, 4, None, None, 0.1, "made up", Bus(50.0, 5.0, 2.0, 8.0))


def board(ranks=4, tokens=32, **options):
    return AllToAllBoard(ranks, tokens=tokens, **options)


def spread(widget):
    """Experts dealt out one by one, so that ranks hold other ones than in order."""
    widget.homes = [expert % widget.ranks for expert in range(len(widget.homes))]
    return widget


@pytest.mark.parametrize("limit", [None, 1])
def test_tokens_are_routed_by_the_router(limit):
    widget = board(ranks=4, nodes=2, top_k=3, node_limit=limit, seed=5)
    logits = draw_logits(5, 4, 32, 16, 1.0)
    options = {"method": "group_limited", "num_groups": 2, "top_groups": 1} if limit else {}
    want = route(logits, 3, **options)
    assert torch.equal(torch.cat([routing.experts for routing in widget.routings]), want.experts)
    assert torch.equal(widget.loads, want.load)


def test_in_order_the_bytes_are_the_exchanges():
    widget = board(top_k=3, d_model=64)
    found = widget.count()
    want = Traffic(count_copies(widget.routings, 4), d_model=64, slots=3, number_bytes=2, weight_bytes=4)
    assert torch.equal(found["dispatch"], want.dispatch) and torch.equal(found["combine"], want.combine)
    assert found["rows"].tolist() == widget.loads.view(4, -1).sum(dim=1).tolist()


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("replicas", [0, 3])
def test_bytes_and_rows_token_by_token(relay, replicas):
    widget = spread(board(nodes=2, top_k=3, skew=1.5, replicas=replicas, relay=relay))
    held, row_bytes = widget.held, 7168 * 2
    copies, rows = torch.zeros(4, 4, dtype=torch.int64), [0] * 4
    for rank, routing in enumerate(widget.routings):
        turn = [rank] * 16
        for experts in routing.experts.tolist():
            wanted = set()
            for expert in experts:
                holders = [other for other in range(4) if expert in held[other]]
                to = holders[turn[expert] % len(holders)]
                turn[expert] += 1
                rows[to] += 1
                wanted.add(to)
            hops = {(rank, to) for to in wanted}
            if relay:
                gates = {to: 2 * (to // 2) + rank % 2 for to in wanted}
                hops = {(rank, gate) for to, gate in gates.items() if to // 2 != rank // 2}
                hops = [*hops, *((gate, to) for to, gate in gates.items())]  # a hop can be both
            for one, other in hops:
                copies[one, other] += 1
    found = widget.count()
    assert found["rows"].tolist() == rows
    assert torch.equal(found["dispatch"], copies * (row_bytes + 3 * 8))
    assert torch.equal(found["combine"], copies.T * row_bytes)


@pytest.mark.parametrize("relay", [False, True])
def test_times_are_the_simulators(relay):
    widget = board(nodes=2, cluster="PCIe", relay=relay, seed=2)
    cluster = replace(CLUSTERS["PCIe"], ranks=4, ranks_per_node=2)
    shape = LayerShape(7168, 2048, 16, 2)
    want = step_time(widget.routings, cluster, shape, Wire.of_exchange(7168, 2, 2, 4), relayed=relay)
    found = widget.step()
    assert found.ms == want.ms and found.even_ms == want.even_ms
    assert torch.equal(found.experts_ms, want.experts_ms)
    assert found.exchanges[0].ms + found.busiest_ms + found.exchanges[1].ms == pytest.approx(found.ms)


def test_the_mean_does_not_matter_the_slowest_rank_does():
    widget = board(ranks=8, top_k=2)
    rows, times = [], []
    for skew in (0.0, 1.0, 2.0):
        widget.skew = skew
        rows.append(widget.count()["rows"].double().mean())
        times.append(widget.step().ms)
    assert rows == [32 * 2] * 3 and times == sorted(times) and times[2] > 1.5 * times[0]


def test_replicas_of_one_hot_expert_beat_moving_experts():
    for seed in range(3):
        widget = AllToAllBoard(tokens=64, seed=seed)
        plain = widget.step().ms
        widget.pack()
        packed = widget.step().ms
        widget.homes, widget.replicas = in_order(8, 4), 3
        replicated = widget.step().ms
        assert replicated < packed < plain


def test_a_node_limit_cuts_what_crosses_between_nodes():
    for relay, less in ((False, 0.95), (True, 0.8)):
        widget = board(ranks=16, nodes=4, tokens=16, top_k=8, relay=relay)
        _, free = widget.between()
        between = []
        for widget.node_limit in (3, 2, 1):
            between.append(widget.between()[1])
        assert between == sorted(between, reverse=True) and between[-1] < less * free
        assert widget.between()[0] >= between[-1]


def test_a_limit_holds_where_experts_lie_in_their_nodes():
    widget = board(ranks=8, nodes=4, top_k=2, node_limit=1, skew=0.2, replicas=3)
    widget.pack()
    assert [home // 2 for home in widget.homes] == [expert // 8 for expert in range(32)]
    node = torch.tensor([widget.placement.devices.tolist()]).flatten() // 2
    for routing in widget.placed:
        nodes = node[routing.experts]
        assert (nodes == nodes[:, :1]).all()


def test_packing_is_the_librarys():
    for limit, seed in itertools.product((None, 1), range(3)):
        widget = board(ranks=4, nodes=2, top_k=2, node_limit=limit, seed=seed, skew=1.5)
        widget.pack()
        nodes = 2 if limit else 1
        want = place_experts(widget.loads, 16, 4, num_nodes=nodes, num_groups=nodes)
        assert (
            widget.placement.device_load(torch.cat([widget.loads])).tolist() == want.device_load(widget.loads).tolist()
        )


def test_replicas_go_where_they_weigh_least():
    assert place_replicas([9, 0, 1, 2], [0, 0, 1, 2], extra=1, ranks=3, ranks_per_node=3) == [[0, 1], [2, 0], [3]]
    assert place_replicas([9, 0, 2, 1], [0, 0, 1, 2], 2, 3, 3) == [[0, 1], [2, 0], [3, 0]]
    assert place_replicas([9, 0, 0, 5], [0, 1, 2, 3], 1, 4, 2) == [[0], [1, 0], [2], [3]], "in its own node"
    for extra, skew in itertools.product((1, 4, 7), (0.0, 2.0)):
        widget = board(ranks=8, replicas=extra, skew=skew)
        held = widget.held
        assert all(len(set(experts)) == len(experts) for experts in held)
        assert all(expert in held[home] for expert, home in enumerate(widget.homes))
        assert sum(map(len, held)) == 32 + extra


def test_a_rank_may_hold_no_expert():
    widget = board(ranks=2, nodes=1, experts_per_rank=2, homes=[0, 0, 0, 0])
    assert widget.held == [[0, 1, 2, 3], []] and widget.count()["rows"].tolist() == [128, 0]
    assert widget.count()["dispatch"][:, 1].tolist() == [0, 0]
    assert "Rank 0 is slowest in all three." in widget.summary()


def test_summary_repr_and_plain_text():
    widget = board(nodes=1, even=False)
    assert repr(widget) == f"AllToAllBoard: {widget.summary()}"
    assert widget.summary().startswith("Predicted for one layer on H800, 4 ranks in 1 node: ")
    assert "even loads" not in widget.summary() and "another node" not in widget.summary()
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_ranks_that_share_a_machine():
    widget = AllToAllBoard(4, nodes=1, tokens=32, d_model=256, d_expert=512, clusters=[DESK])
    assert (
        "Dispatch waits for every rank alike, which share the cores of the machine; the experts for rank"
        in widget.summary()
    )
    bytes_sent = widget.count()["dispatch"]
    kept = int(bytes_sent.diagonal().sum())
    carried = int(bytes_sent.sum()) - kept
    assert widget.step().exchanges[0].ms == pytest.approx(0.05 + 0.005 * 12 + carried / 2e6 + kept / 8e6)


def test_small_messages_wait_for_latency():
    widget = board(tokens=16, d_model=2, d_expert=2)
    assert re.search(r"Dispatch waits for rank \d, whose latencies are longer than its bytes take;", widget.summary())


def test_traits_stay_together():
    widget = board(ranks=8, nodes=4, top_k=4, node_limit=2, replicas=7)
    widget.pack()
    widget.ranks = 6
    assert (widget.nodes, widget.node_limit, widget.replicas) == (3, 2, 5) and widget.homes == in_order(6, 4)
    widget.experts_per_rank = 1
    assert (widget.top_k, widget.node_limit, len(widget.homes)) == (4, 2, 6)
    widget.top_k = 6
    assert widget.node_limit is None, "six experts need all three nodes"
    widget.ranks = 2
    assert (widget.nodes, widget.top_k, widget.replicas, widget.homes) == (2, 2, 1, [0, 1])
    widget.cluster = "GB200 NVL72"
    assert widget.nodes == 1, "it has no link between nodes"


def test_a_message_from_the_browser_sets_all_at_once():
    widget = board(ranks=8, nodes=4)
    homes = [2] * 9
    widget.set_state({"homes": homes, "ranks": 3, "experts_per_rank": 3, "nodes": 3, "node_limit": 1, "replicas": 2})
    assert (widget.ranks, widget.nodes, widget.node_limit, widget.homes) == (3, 3, 1, homes)


def test_what_the_browser_gets_is_json():
    state = AllToAllBoard(clusters=[*CLUSTERS.values(), DESK]).get_state()
    sent = json.loads(json.dumps({name: state[name] for name in ("clusters", "layer", "homes")}))
    assert [one["name"] for one in sent["clusters"]] == [*CLUSTERS, "desk"]
    assert sent["clusters"][0]["between"]["gigabytes_per_s"] == CLUSTERS["H800"].between.gigabytes_per_s
    assert sent["clusters"][-1]["bus"]["message_us"] == 5.0
    assert sent["layer"] == {"d_model": 7168, "d_expert": 2048, "row_bytes": 14_336, "slot_bytes": 8}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ranks": 17}, ValueError, r"ranks must be in 2\.\.16, got 17"),
        ({"ranks": 2.0}, TypeError, "ranks must be a whole number"),
        ({"nodes": 3}, ValueError, "nodes must divide ranks=8, got 3"),
        ({"nodes": 2, "cluster": "GB200 NVL72"}, ValueError, "nodes must be 1 on GB200 NVL72, got 2"),
        ({"experts_per_rank": 9}, ValueError, r"experts_per_rank must be in 1\.\.8, got 9"),
        ({"top_k": 0}, ValueError, r"top_k must be in 1\.\.8, got 0"),
        ({"ranks": 2, "experts_per_rank": 1, "top_k": 3}, ValueError, r"top_k must be in 1\.\.2, got 3"),
        ({"tokens": 15}, ValueError, r"tokens must be in 16\.\.512, got 15"),
        ({"skew": 2.5}, ValueError, r"skew must lie in 0\.\.2, got 2\.5"),
        ({"cluster": "B300"}, ValueError, "cluster must be one of H800, .*; got 'B300'"),
        ({"node_limit": 3}, ValueError, r"node_limit must be in 1\.\.2, got 3"),
        ({"experts_per_rank": 1, "top_k": 5, "node_limit": 1}, ValueError, r"node_limit must be in 2\.\.2, got 1"),
        ({"replicas": 8}, ValueError, r"replicas must be in 0\.\.7, got 8"),
        ({"homes": [0, 1]}, ValueError, r"homes must be 32 numbers in 0\.\.7, a rank for each expert; got \[0, 1\]"),
        ({"homes": [8] * 32}, ValueError, "homes must be 32 numbers"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
        ({"d_model": 0}, ValueError, "d_model must be at least 1, got 0"),
        ({"clusters": []}, ValueError, "clusters must be at least one"),
        ({"clusters": [DESK, DESK], "nodes": 1}, ValueError, "each with its own name"),
        ({"clusters": [replace(DESK, tflop_s=None)]}, ValueError, "clusters must say their tflop_s, desk does not"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        AllToAllBoard(**options)


def test_bad_assignments_are_refused():
    widget = board(ranks=8, nodes=4)
    for name, value in (
        *(("cluster", "B300"), ("nodes", 3), ("node_limit", 5), ("replicas", 8)),
        *(("homes", [0]), ("homes", [8] * 32)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be|{name} must divide"):
            setattr(widget, name, value)
    for name, value in (("ranks", 1), ("tokens", 8), ("skew", 3.0), ("top_k", 9), ("seed", -1)):
        with pytest.raises(traitlets.TraitError, match=f"'{name}' trait"):
            setattr(widget, name, value)
    assert (widget.ranks, widget.nodes, widget.replicas, widget.homes) == (8, 4, 0, in_order(8, 4))
