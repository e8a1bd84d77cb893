"""Lesson 12: what the answers are judged by is right itself."""

import itertools
import math

import pytest
import torch

from moe_lab import route
from moe_lab.exercises.lesson_12 import (
    EXERCISES,
    FAULTS,
    TEXT,
    agreement,
    bits,
    document_p_value,
    idle_share,
    make_report,
    stays,
    white,
)
from moe_lab.specialisation import idle_experts

from ..mutants.answers_12 import RIGHT


@pytest.mark.parametrize(("num_experts", "slots", "tokens"), [(64, 8, 10), (16, 2, 5)])
def test_idle_experts_of_fair_lots_are_those_of_the_formula(num_experts, slots, tokens):
    lots = route(torch.zeros(8000, num_experts), slots, "random", generator=torch.Generator().manual_seed(0)).experts
    spec = idle_share([slots / num_experts] * num_experts, tokens)
    assert idle_experts(lots, num_experts, tokens).found == pytest.approx(spec, abs=0.01)


def test_bits_do_not_mind_names():
    assert bits([5, 5, 90, 90], [1, 1, 0, 0]) == bits([0, 0, 1, 1], [0, 0, 1, 1]) == 1
    assert bits([7], [3]) == 0


def test_a_p_value_of_all_shuffles_is_exact():
    """Three documents and all six orders: with the found one itself, three of seven values are as large."""
    experts, documents, domains = [0, 0, 1, 2], [0, 0, 1, 2], [0, 1, 1]
    orders = list(itertools.permutations(range(3)))
    values = [agreement(experts, [domains[order[document]] for document in documents]) for order in orders]
    assert sorted(values) == [0, 0, 1, 1, 3, 3] and agreement(experts, [0, 0, 1, 1]) == 3
    assert document_p_value(agreement, experts, documents, domains, orders) == pytest.approx(3 / 7)


def test_neighbours_by_hand():
    assert stays([0, 0, 1, 1, 1, 0], [0] * 6) == pytest.approx((3 / 5, 1 / 2))
    assert stays([3, 3, 3], [0, 1, 1]) == (1, 1)


def test_a_sound_report_is_sound():
    report = make_report()
    assert RIGHT["12.5"](report) == []
    assert report["white"] == [int(chr(byte).isspace()) for byte in TEXT] == white(TEXT)
    assert len(report["tokens"]) == len(report["domains"])
    broken = make_report(white=[0] * len(TEXT), tokens=[1, 2], shuffled="tokens", found=-1.0)
    assert RIGHT["12.5"](broken) == list(FAULTS)


def test_the_numbers_in_the_text():
    assert RIGHT["12.1"]([0.25] * 4, 1) == 0.75
    assert RIGHT["12.2"]([0, 0, 1, 1], [0, 0, 1, 0]) == pytest.approx(1.5 - 0.75 * math.log2(3))
    assert RIGHT["12.3"](agreement, [0], [0], [0], []) == 1
    assert RIGHT["12.4"]([0, 0, 1, 1, 1, 0], [0] * 6) == (0.6, 0.5)


@pytest.mark.parametrize(
    ("exercise_id", "answer", "says"),
    [
        ("12.1", lambda *_: 1, "yours 1, spec 0.263"),
        ("12.2", lambda *_: 5, "yours 5 bits, spec 1"),
        ("12.3", lambda *_: 0, "yours 0, spec 0.4"),
        ("12.4", lambda *_: (1, 2, 3), "yours (1, 2, 3), spec (0.6, 0.5)"),
        ("12.5", lambda *_: None, "yours None, spec []"),
    ],
)
def test_what_is_no_answer_is_told_so(exercise_id, answer, says):
    assert says in EXERCISES[exercise_id].examine(answer).says
