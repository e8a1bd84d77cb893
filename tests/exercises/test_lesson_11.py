"""Lesson 11: what the answers are judged by is right itself."""

import pytest
import torch

from moe_lab import Routing, route
from moe_lab.exercises.lesson_11 import EXERCISES, LAYER, forward_bytes, layer_ms, make_report, mean_copies
from moe_lab.parallel.clusters import Cluster, Link
from moe_lab.parallel.simulator import StepTime, exchange_time
from moe_lab.parallel.traffic import count_copies

from ..mutants.answers_11 import RIGHT


@pytest.mark.parametrize(("num_experts", "top_k", "ranks"), [(64, 8, 8), (16, 2, 4), (32, 4, 2)])
def test_copies_of_random_experts_are_those_of_the_formula(num_experts, top_k, ranks):
    generator = torch.Generator().manual_seed(0)
    routing = route(torch.zeros(4000, num_experts), top_k, "random", generator=generator)
    seen = float(count_copies([routing] * ranks, ranks)[0].sum()) / 4000
    assert seen == pytest.approx(mean_copies(num_experts, top_k, ranks), abs=0.05)


def test_bytes_by_hand():
    """Two experts a rank, three numbers a token: a copy there is 6 + 2 * 8 bytes, an answer 6."""
    choices = [[[0, 2], [2, 3]], [[1, -1]]]
    by_hand = [[22 + 6, 22 + 22 + 6], [22 + 6 + 6, 0]]
    assert forward_bytes(choices, 4, 3) == by_hand == RIGHT["11.2"](choices, 4, 3)


def test_a_layer_takes_what_the_simulator_says():
    sent = torch.tensor([[5, 40, 10], [20, 9, 30], [0, 60, 7]]) * 10**6
    link = Link("test", 40.0, 0.0, "test")
    cluster = Cluster("test", 3, 3, link, None, 1.0, "test")
    exchanges = exchange_time(sent, cluster), exchange_time(sent.T.contiguous(), cluster)
    rows = torch.tensor([100.0, 700.0, 200.0], dtype=torch.float64)
    for overlap in (0.0, 0.5, 1.0):
        step = StepTime(exchanges, rows / 200, overlap)
        found = layer_ms(sent.tolist(), [100, 700, 200], 40, 200, overlap)
        assert found == pytest.approx(step.ms) == RIGHT["11.4"](sent.tolist(), [100, 700, 200], 40, 200, overlap)


def test_a_healthy_report_is_healthy():
    for ranks in (1, 4):
        report = make_report(ranks)
        assert report["calls"] == [LAYER] * ranks and len(report["router"]) == ranks
        assert RIGHT["11.5"](report) == []


def test_the_numbers_in_the_text():
    assert RIGHT["11.1"](4, 2, 2) == pytest.approx(5 / 3)
    assert RIGHT["11.2"]([[[2, 3]], []], 4, 10) == [[0, 36], [20, 0]]
    assert RIGHT["11.3"]([1, 5, 4, 3], 2) == [[1, 0], [2, 3]]
    assert RIGHT["11.4"]([[0, 10**8], [10**8, 0]], [1000, 3000], 50, 1000, 0.5) == pytest.approx(5.5)
    assert RIGHT["11.5"](make_report(experts=4.0)) == ["experts not divided"]


def test_a_routing_of_the_second_exercise_is_one():
    assert Routing(torch.tensor([[2, -1]]), torch.tensor([[1.0, 0.0]]), 4).load.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("exercise_id", "answer", "says"),
    [
        ("11.1", lambda *_: 8, "yours 8, spec 2"),
        ("11.2", lambda *_: [[0]], "give 2 rows of 2 numbers"),
        ("11.5", lambda *_: None, "yours None, spec []"),
    ],
)
def test_what_is_no_answer_is_told_so(exercise_id, answer, says):
    assert says in EXERCISES[exercise_id].examine(answer).says
