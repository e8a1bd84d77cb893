"""Two processes, one place: the second hears at once what to do, and the first ends as if it had been alone.

Training has this drill in tests/test_train.py, and on ranks in tests/parallel/test_trainer.py.
"""

import os
import sys

import pytest

from moe_lab.bench import Case, Measured, machine, run
from moe_lab.bench import record as recorder
from moe_lab.checkpoint import read_json
from moe_lab.site import build as build_site

from .children import Ended, in_a_child

build_module = sys.modules["moe_lab.site.build"]
ROW = Measured(
    "mine", "forward", {"tokens": 4}, "float32", error=0.0, tolerance=0.5, ms_p20=1.0, ms_p50=1.0, ms_p80=1.0
)


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """A clean tree at a made-up commit, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "git", lambda *given: "c0ffee" * 6 if given[0] == "rev-parse" else "")
    ceilings = {"flops_per_s": {"bfloat16": 1e9, "float32": 1e9}, "bytes_per_s": 1e9}
    monkeypatch.setattr(machine, "measure", lambda **_: ceilings)
    return tmp_path / "records"


def test_a_second_bench_is_refused_and_the_first_records(clean):
    heard = []

    def meet(seconds):
        heard.append(in_a_child(lambda: run("cpu", [Case("2", lambda _: [ROW])], clean)))
        return [ROW]

    rows, path = run("cpu", [Case("1", meet)], clean)
    assert heard == [
        Ended(1, "ValueError: another process records a suite here, and would share the cores; wait for it\n")
    ]
    assert len(rows) == 1 and read_json(path)["rows"] == [ROW.as_dict()]
    assert [one.name for one in clean.iterdir()] == [path.name] and not list(recorder.UNFINISHED.iterdir())


def test_a_bench_killed_at_any_case_goes_on_and_its_record_is_whole(clean):
    """SIGKILL within each case in turn: what was finished before is not timed again."""
    timed = clean.parent / "timed"

    def case(name, dies):
        def time_it(seconds):
            if dies:
                os.kill(os.getpid(), 9)
            with timed.open("a") as file:
                file.write(name)
            return [ROW]

        return Case(name, time_it)

    names = "abc"
    for dying in names:
        ended = in_a_child(lambda dying=dying: run("cpu", [case(name, name == dying) for name in names], clean))
        assert ended.code == -9 and not list(clean.glob("*.json")), "no record before the last case"
        (left,) = recorder.UNFINISHED.glob("*.json") if dying > "a" else ({},)
        assert not left or {*read_json(left)} == {"run", *names[: names.index(dying)]}
    rows, path = run("cpu", [case(name, False) for name in names], clean)
    assert timed.read_text() == names and len(rows) == len(read_json(path)["rows"]) == 3


def test_a_bench_that_could_not_record_times_nothing(clean):
    clean.touch()  # a file where the folder would be
    with pytest.raises(OSError, match=f"cannot write {clean}/cpu-.*; give another place, and start again"):
        run("cpu", [Case("1", lambda seconds: pytest.fail("it was timed"))], clean)


def test_a_second_site_is_refused_and_the_first_is_whole(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "0.md").write_text("# Page\n")
    out, heard, read = tmp_path / "site", [], build_module.read_pages

    def meet(root):
        if not heard:
            heard.append("called")
            heard.append(in_a_child(lambda: build_site(out, tmp_path)))
        return read(root)

    monkeypatch.setattr(build_module, "read_pages", meet)
    pages = build_site(out, tmp_path)
    says = f"ValueError: another process builds {out}; wait for it, or give another --out\n"
    assert heard[1] == Ended(1, says)
    assert out / "docs" / "0.html" in pages and sorted(p.name for p in tmp_path.iterdir()) == ["docs", "site"]
