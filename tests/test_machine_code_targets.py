"""The five targets, and which configuration is meant for which."""

import importlib
from pathlib import Path

import pytest

from moe_lab.machine_code import TARGETS, targets_of
from moe_lab.machine_code.targets import FAMILIES, check_targets

KERNELS = sorted(
    path.stem for path in (Path(__file__).parents[1] / "kernels").glob("*.py") if not path.name.startswith("_")
)


def test_the_five():
    assert list(TARGETS) == ["sm_80", "sm_90", "sm_100", "gfx942", "gfx950"]
    assert {target.lanes for name, target in TARGETS.items() if name.startswith("gfx")} == {64}
    assert TARGETS["sm_90"].shared_bytes == 232448


def test_every_target_has_a_configuration_in_half_precision():
    in_half = [target for family in ("ampere", "hopper", "cdna") for target in FAMILIES[family]]
    assert sorted(in_half) == sorted(TARGETS)


@pytest.mark.parametrize("name", KERNELS)
def test_every_configuration_of_every_kernel_is_meant_for_something(name):
    configs = getattr(importlib.import_module(f"moe_lab.kernels.{name}"), "CONFIGS", None)
    reached = {target for config in configs or [None] for target in targets_of(config)}
    assert reached == set(TARGETS)


def test_targets_of_a_name():
    assert targets_of("cdna_small") == targets_of("cdna") == ("gfx942", "gfx950")
    assert targets_of("interpreter") == () and targets_of(None) == targets_of("float32") == tuple(TARGETS)
    with pytest.raises(ValueError, match=r"config must begin with one of interpreter, .*; got 'volta_small'"):
        targets_of("volta_small")


def test_targets_are_checked_and_put_in_order():
    assert check_targets([]) == list(TARGETS)
    assert check_targets(["gfx942", "sm_80", "gfx942"]) == ["sm_80", "gfx942"]
    with pytest.raises(ValueError, match=r"target must be one of sm_80, .*; got 'sm_75'"):
        check_targets(["sm_90", "sm_75"])
