"""Suite "dispatch": both ways verified against what must come back, with the FLOPs of their closed forms."""

from importlib import import_module

import pytest

from moe_lab.bench import SUITES, run
from moe_lab.dispatch import one_hot_flops, table_flops
from moe_lab.scoreboard.timed import ratios_of

MODULE = import_module("moe_lab.bench.dispatch")  # the package's attribute of that name is the suite


def test_both_ways_are_right_and_have_their_flops():
    rows, path = run("dispatch", SUITES["dispatch"](quick=True), None, seconds=0.5)
    assert path is None and [row.implementation for row in rows] == ["one_hot", "table"]
    assert all(row.verified and row.ms_p50 > 0 for row in rows)
    assert rows[0].shape == {"tokens": 16, "d_model": 256, "num_experts": 4, "top_k": 1}
    assert [row.flops for row in rows] == [one_hot_flops(16, 4, 5, 256), table_flops(16, 1, 256)]
    assert len(ratios_of(rows, "one_hot", "table")) == 1


def test_sizes_are_those_of_few_and_many_tokens_and_experts():
    names = [case.name for case in SUITES["dispatch"]()]
    assert names == ["(8, 16)", "(8, 128)", "(128, 16)", "(128, 128)", "(2048, 16)", "(2048, 128)"]


def test_a_wrong_way_is_refused(monkeypatch):
    carry = MODULE.carry
    monkeypatch.setattr(MODULE, "carry", lambda *given, dispatch: carry(*given, dispatch=dispatch) * 1.01)
    with pytest.raises(ValueError, match=r"one_hot on .* is off by 0\.0"):
        run("dispatch", SUITES["dispatch"](quick=True), None, seconds=0.5)
