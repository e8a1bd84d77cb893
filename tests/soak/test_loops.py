"""Loops that a reader leaves running: watching, timing, checking, tracing, and processes that come and go."""

import sys
import tempfile

import pytest
import torch
from torch import nn

from moe_lab import MoE, hf
from moe_lab.lesson import check
from moe_lab.machine_code.pool import Pool, Worker
from moe_lab.profiling.timing import time_interleaved

from ..mutants import answers_00, answers_07
from .growth import WHOLE, repeat

pytestmark = pytest.mark.soak


@pytest.mark.usefixtures("unchecked_shapes")
@torch.no_grad()
def test_watching_many_batches():
    torch.manual_seed(0)
    model = nn.Sequential(*(MoE(8, 8, num_experts=4, top_k=2) for _ in range(2)))
    batches = [torch.randn(tokens, 8) for tokens in (1, 70, 5, 0)]  # one that waits, one that does not, one of none
    with hf.watch(model, keep=100) as seen:
        repeat(
            "watch, four batches",
            lambda: [model(batch) for batch in batches],
            2400 if WHOLE else 16,
            100 if WHOLE else 8,
        )
        assert [layer.tokens for layer in seen.layers] == [seen.layers[0].tokens] * 2
        assert seen.layers[0].calls == (10_000 if WHOLE else 96) and seen.layers[0].kept == 100


def test_timing():
    functions = {"sum": lambda: sum(range(10)), "max": lambda: max(range(10))}
    repeat(
        "time_interleaved",
        lambda: time_interleaved(functions, repeats=5, threads=1),
        4000 if WHOLE else 20,
        1000 if WHOLE else 20,
    )


def test_checking(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "progress.json"))

    def fails(routing):
        raise KeyError("mine")

    def check_all() -> None:
        for answer in (answers_00.RIGHT["00.1"], fails, 7, None):
            check("00.1", answer)
        assert "solved" in capsys.readouterr().out

    repeat("check, four answers", check_all, 1000 if WHOLE else 12, 200 if WHOLE else 4)


def test_checking_kernels(capsys, monkeypatch, tmp_path):
    """In Triton's interpreter, where every launch is traced."""
    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "progress.json"))

    def check_both() -> None:
        check("07.3", answers_07.RIGHT["07.3"])
        check("07.3", next(iter(answers_07.WRONG["07.3"].values())))
        assert "solved" in capsys.readouterr().out

    repeat("check, two kernels", check_both, 96 if WHOLE else 4, 40 if WHOLE else 1)


@pytest.fixture
def scratch(monkeypatch, tmp_path):
    """Where temporary folders are made; none is left there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert [*tmp_path.iterdir()] == []


STAND_IN = """#!/bin/sh
read request
case "$request" in
  *crash*) exit 3 ;;
  *hang*) exec sleep 100 ;;
esac
echo '{"end": true}'
cat > /dev/null
"""


def test_workers_that_come_and_go(scratch, tmp_path_factory, monkeypatch):
    """A stand-in for the compiler's process that starts at once; it answers, crashes or hangs."""
    script = tmp_path_factory.mktemp("bin") / "python"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr("moe_lab.machine_code.pool.START_LIMIT_S", 0.2)

    def work() -> None:
        with Pool(2, limit_s=0.2) as pool:
            answers = [*pool.ask_all([{"do": "answer"}, {"do": "crash"}])]
            assert [failed for _, failed in answers] == [None, "the compiler's process ended (exit code 3)"]
        with Worker(limit_s=0.2) as worker:
            assert worker.ask(do="hang")[1] == "no answer within 0.2 s"

    repeat("workers", work, 96 if WHOLE else 4, 20 if WHOLE else 2)
