"""Lesson 14: what the answers are judged by is right itself."""

import itertools

import pytest

from moe_lab.exercises.lesson_14 import AT_THE_FLOOR, CLAIM, EXERCISES, METRICS, QUOTES, TIMES, WORDS, baselines
from moe_lab.plots.scoreboard import whole_gain
from moe_lab.roofline import DEVICES
from moe_lab.scoreboard import SOURCES, VERDICTS, Claim, Demand, Finding, There, judge

from ..mutants.answers_14 import RIGHT


def test_every_quote_has_a_metric_of_its_own():
    assert list(QUOTES) == list(METRICS) and len(set(METRICS.values())) == len(QUOTES)


def test_the_verdicts_are_the_scoreboards():
    assert WORDS == tuple(VERDICTS)
    options = itertools.product(["a layer", ""], ["a loop", ""], [[], ["H100"]], [None, [3, 1], [3, 9], [5, 9]])
    for (metric, baseline, devices, values), device, contradicted in itertools.product(
        options, ["NVIDIA H100", "a laptop"], [False, True]
    ):
        found = values and {f"case {n}": value for n, value in enumerate(values)}
        there = There(metric, baseline, "any", "", "none")
        claim = Claim("x", "4x", SOURCES[0], there, (), "", "", demand=Demand(low=4), devices=tuple(devices))
        library = judge(claim, found and Finding("measured", found, device=device), contradicted)
        given = CLAIM | {"metric": metric, "baseline": baseline, "devices": devices}
        assert RIGHT["14.4"](given, found, device, contradicted) == library


@pytest.mark.parametrize(
    ("ours", "printed"), [(2.0, text) for text in ("8.2x", "1.22x", "0.8x", "4x", "1x", "5.0x")] + [(4.0, "4.1x")]
)
def test_no_ratio_lies_where_rounding_could_go_either_way(ours, printed):
    number = printed[:-1]
    half = 0.5 * 10 ** -len(number.partition(".")[2])
    for ms in TIMES.values():
        assert abs(abs(ms / ours - float(number)) - half) > 1e-6, (ms, printed)
    found = baselines(ours, TIMES, printed)
    assert found == [name for name in sorted(TIMES) if abs(TIMES[name] / ours - float(number)) < half]


@pytest.mark.parametrize(("part", "share"), [(6, 0.3), (10, 0.1), (0.5, 0.5)])
def test_the_part_and_the_whole_are_amdahls(part, share):
    assert RIGHT["14.3"](part, share, None)[2] == pytest.approx(whole_gain(part, share))


def test_the_floor_is_the_longer_of_both():
    assert AT_THE_FLOOR["ms"] == 1e3 * max(AT_THE_FLOOR["flops"] / 1e15, AT_THE_FLOOR["bytes"] / 5e12)


def test_the_numbers_in_the_text():
    assert RIGHT["14.2"](2.0, TIMES, "8.2x") == ["a loop"]
    assert RIGHT["14.3"](6, 0.3, None)[2] == pytest.approx(4 / 3)
    row = {"name": "a", "flops": 0, "bytes": 1.41e9, "ms": 0.228}
    h100 = DEVICES["H100 SXM"]
    assert RIGHT["14.5"]([row], h100.peak("bfloat16"), h100.bytes_per_s) == ["a"]


@pytest.mark.parametrize(
    ("exercise_id", "answer", "says"),
    [
        ("14.1", ["balance"], "give a dict from letters to metrics"),
        ("14.1", METRICS | {"A": "speed"}, "yours 'speed', which is none of the nine metrics"),
        ("14.2", lambda *_: "a loop", "yours 'a loop', spec ['a loop']"),
        ("14.3", lambda *_: 1.3, "give three numbers, (part, share, whole), not 1.3"),
        ("14.4", lambda *_: None, "yours None, spec 'not a comparable quantity'"),
        ("14.5", lambda *_: None, "yours None, spec []"),
    ],
)
def test_what_is_no_answer_is_told_so(exercise_id, answer, says):
    assert says in EXERCISES[exercise_id].examine(answer).says
