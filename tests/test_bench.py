"""The benchmark runner: refuses wrong answers and runs that nobody could repeat; its records are what it printed."""

import json
import subprocess

import pytest

import moe_lab.kernels
from moe_lab.__main__ import main
from moe_lab.bench import SUITES, Measured, run, show_table
from moe_lab.bench import record as recorder
from moe_lab.checkpoint import read_json

SHAPE = {"tokens": 4}


def row(name="mine", error=0.0, ms=2.0):
    return Measured(name, "forward", SHAPE, "float32", ms, ms, ms, error, 0.5)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_suite_runs_and_verifies(suite):
    rows, path = run(suite, SUITES[suite](quick=True), None)
    assert path is None and len(rows) >= 8
    assert all(r.verified and 0 < r.ms_p20 <= r.ms_p50 <= r.ms_p80 for r in rows)


def test_a_wrong_answer_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_git", lambda *arguments: "")
    with pytest.raises(ValueError, match=r"mine on \{'tokens': 4\} is off by 0.6, allowed 0.5"):
        run("routers", [lambda: [row(error=0.6)]], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_record_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_git", lambda *arguments: "c0ffee" * 6 if arguments[0] == "rev-parse" else "")
    rows, path = run("routers", [lambda: [row(), row("torch.topk", ms=1.0)]], tmp_path)
    assert path.name.startswith("routers-") and path.name.endswith("-c0ffeec0f.json")
    record = read_json(path)
    assert record["rows"] == json.loads(json.dumps([r.as_dict() for r in rows]))
    assert record["rows"][0]["pass"] == "forward" and record["rows"][0]["verified"]
    assert record["run"]["dirty"] is False and record["run"]["threads"] >= 1
    with pytest.raises(ValueError, match="records are immutable"):
        run("routers", [lambda: [row()]], tmp_path)


def test_what_cannot_be_repeated_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        recorder, "_git", lambda *arguments: " M moe_lab/experts.py" if arguments[0] == "status" else ""
    )
    with pytest.raises(ValueError, match=r"needs a clean tree, changed: M moe_lab/experts.py; try --no-record"):
        run("routers", [], tmp_path)
    monkeypatch.setattr(recorder, "_git", lambda *arguments: "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(moe_lab.kernels, "SWITCHED_ON", False)  # but somebody's own wish
    with pytest.raises(ValueError, match="the interpreter's times say nothing"):
        run("routers", [], tmp_path)

    def no_git(*arguments):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(recorder, "_git", no_git)
    with pytest.raises(ValueError, match="a record names its commit"):
        run("routers", [], tmp_path)


def test_the_table_compares_with_the_baseline():
    lines = show_table([row("torch.topk", ms=2.0), row(ms=5.0)], "torch.topk").splitlines()
    assert lines[1].split()[-1] == "1.00" and lines[2].split()[-1] == "2.50"


def test_the_command_line(capsys):
    assert main(["bench", "routers", "--quick", "--no-record"]) == 0
    said = capsys.readouterr().out
    assert "balanced, warm" in said and "not recorded" in said
    assert main(["bench", "--quick", "--no-record", "--json"]) == 0
    assert {"implementation", "ms_p50", "verified"} <= set(json.loads(capsys.readouterr().out)[0])
