"""The benchmark runner: refuses wrong answers and runs that nobody could repeat; cut runs go on; records stay."""

import dataclasses
import json
import subprocess

import pytest

import moe_lab.kernels
from moe_lab.__main__ import main
from moe_lab.bench import SUITES, Case, Measured, machine, run, show_table
from moe_lab.bench import record as recorder
from moe_lab.bench.limits import refuse_above_roofline
from moe_lab.checkpoint import read_json

SHAPE = {"tokens": 4}
CEILINGS = {"flops_per_s": {"bfloat16": 1e9, "float32": 1e9}, "bytes_per_s": 1e9}


def row(name="mine", error=0.0, ms=2.0, **values):
    times = dict(ms_p20=ms, ms_p50=ms, ms_p80=ms)
    return Measured(name, "forward", SHAPE, "float32", error=error, tolerance=0.5, **times, **values)


def case(*rows, name="a case"):
    return Case(name, lambda seconds: list(rows))


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """A clean tree at a made-up commit, ceilings at once, cut runs elsewhere; returns the folder for records."""
    monkeypatch.setattr(machine, "git", lambda *given: "c0ffee" * 6 if given[0] == "rev-parse" else "")
    monkeypatch.setattr(machine, "measure", lambda **_: CEILINGS)
    monkeypatch.setattr(recorder, "UNFINISHED", tmp_path / "unfinished")
    return tmp_path / "records"


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_suite_runs_and_verifies(suite):
    """Small, and on a machine without a GPU the kernels in the interpreter."""
    rows, path = run(suite, SUITES[suite](quick=True), None, seconds=1.0)
    measured = [r for r in rows if r.ms_p50 is not None]
    assert path is None and len(measured) >= 2
    assert all(r.verified and 0 < r.ms_p20 <= r.ms_p50 <= r.ms_p80 for r in measured)
    assert all(r.why_not for r in rows if r not in measured)


@pytest.mark.parametrize("suite", ["layer", "decode", "align", "order"])
def test_a_gpu_suite_without_one_says_not_measured(suite, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"suite '{suite}' times kernels on a GPU, .* not measured"):
        SUITES[suite]()


def test_a_wrong_answer_is_not_recorded(clean):
    with pytest.raises(ValueError, match=r"mine on \{'tokens': 4\} is off by 0.6, allowed 0.5"):
        run("routers", [case(row(error=0.6))], clean)
    assert not clean.exists()


def test_a_record_is_written_once(clean):
    rows, path = run("routers", [case(row(), row("torch.topk", ms=1.0))], clean)
    assert path.name.startswith("routers-") and path.name.endswith("-c0ffeec0f.json")
    record = read_json(path)
    assert record["rows"] == json.loads(json.dumps([r.as_dict() for r in rows]))
    assert record["rows"][0]["pass"] == "forward" and record["rows"][0]["verified"]
    assert [Measured.from_dict(r) for r in record["rows"]] == rows
    about = record["run"]
    assert about["dirty"] is False and about["threads"] >= 1 and about["commit"].startswith("c0ffee")
    assert {"device", "started", "driver", "command", "ceilings"} <= set(about) and about["versions"]["torch"]
    with pytest.raises(ValueError, match="records are immutable"):
        run("routers", [case(row())], clean)


def test_what_cannot_be_repeated_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "git", lambda *given: " M moe_lab/experts.py" if given[0] == "status" else "")
    with pytest.raises(ValueError, match=r"needs a clean tree, changed: M moe_lab/experts.py; try --no-record"):
        run("routers", [], tmp_path)
    monkeypatch.setattr(machine, "git", lambda *given: "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(moe_lab.kernels, "SWITCHED_ON", False)  # but somebody's own wish
    with pytest.raises(ValueError, match="the interpreter's times say nothing"):
        run("routers", [], tmp_path)

    def no_git(*given):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(machine, "git", no_git)
    with pytest.raises(ValueError, match="a record names its commit"):
        run("routers", [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cut_run_goes_on_after_its_last_finished_case(clean):
    called = []

    def cut(seconds):
        called.append("cut")
        raise KeyboardInterrupt

    def count(seconds):
        called.append("first")
        return [row("first")]

    with pytest.raises(KeyboardInterrupt):
        run("cpu", [Case("1", count), Case("2", cut)], clean)
    assert not clean.exists() and len(list(recorder.UNFINISHED.iterdir())) == 1
    rows, path = run("cpu", [Case("1", count), case(row("second"), name="2")], clean)
    assert called == ["first", "cut"] and [r.implementation for r in rows] == ["first", "second"]
    assert len(read_json(path)["rows"]) == 2 and not list(recorder.UNFINISHED.iterdir())


def test_a_damaged_file_of_a_cut_run_is_passed_over(clean):
    with pytest.raises(ValueError, match="allowed"):
        run("cpu", [case(row("first"), name="1"), case(row(error=1.0), name="2")], clean)
    (left,) = recorder.UNFINISHED.iterdir()
    left.write_text(left.read_text()[:40])
    rows, _ = run("cpu", [case(row("again"), name="1")], clean)
    assert [r.implementation for r in rows] == ["again"]


def test_when_the_time_is_up_the_rest_is_recorded_as_not_measured(clean):
    late = Case("late", lambda _: pytest.fail("no time"), lambda why: [row("late", ms=None, why_not=why)])
    rows, path = run("cpu", [late], clean, seconds=0.0)
    assert rows[0].why_not == "the suite's time was up" and rows[0].ms_p50 is None
    assert read_json(path)["rows"][0]["why_not"]


def test_cases_share_what_is_left_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])
    given = []

    def take(seconds):
        given.append(seconds)
        now[0] += 2.0
        return []

    run("cpu", [Case(str(i), take) for i in range(3)], None, seconds=12.0)
    assert given == [4.0, 5.0, 8.0]


def test_no_row_above_the_roofline_is_accepted(clean):
    """2 ms at 1e9 FLOP/s are 2e6 FLOPs; at 1e9 bytes/s they are 2e6 bytes."""
    assert run("cpu", [case(row(flops=2_000_000, bytes=2_000_000))], clean)[1]
    for over in (dict(flops=2_100_000), dict(bytes=2_100_000)):
        with pytest.raises(ValueError, match=r"took 2\.000 ms, and the roofline of this machine allows 2\.100 at best"):
            refuse_above_roofline([row(**over)], {"ceilings": CEILINGS}, lambda: CEILINGS)
    with pytest.raises(ValueError, match="roofline"):
        run("layer", [case(row(flops=2_100_000))], clean)
    assert not list(clean.glob("layer-*"))


def test_ceilings_from_a_slow_moment_are_measured_again():
    about = {"ceilings": CEILINGS}
    faster = {"flops_per_s": {"float32": 3e9}, "bytes_per_s": 5e8}
    refuse_above_roofline([row(flops=2_100_000)], about, lambda: faster)
    assert about["ceilings"] == {"flops_per_s": {"bfloat16": 1e9, "float32": 3e9}, "bytes_per_s": 1e9}


def test_the_table_compares_with_the_baseline():
    lines = show_table([row("torch.topk", ms=2.0), row(ms=5.0)], "torch.topk").splitlines()
    assert "1.00 x torch.topk" in lines[1] and "2.50 x torch.topk" in lines[2]


def test_without_a_baseline_the_table_has_rates():
    lines = show_table([row(flops=4_000_000_000), row(bytes=4_000_000), row()]).splitlines()
    assert "2.0000 TFLOP/s" in lines[1] and "2.0 GB/s" in lines[2]


def test_a_row_of_an_older_record_can_be_read():
    values = row().as_dict()
    for name in ("mode", "repeats", "peak_bytes", "version", "call", "why_not"):
        del values[name]
    assert Measured.from_dict(values) == dataclasses.replace(row(), repeats=None)


def test_the_command_line(capsys):
    assert main(["bench", "routers", "--quick", "--no-record"]) == 0
    said = capsys.readouterr().out
    assert "balanced, warm" in said and "not recorded" in said
    assert main(["bench", "ceilings", "--quick", "--no-record", "--json"]) == 0
    assert {"implementation", "ms_p50", "verified"} <= set(json.loads(capsys.readouterr().out)[0])
    assert main(["bench", "ceilings", "--minutes", "0", "--no-record"]) == 1
    assert "--minutes must be above 0, got 0" in capsys.readouterr().err
