"""The real commands, killed in the middle: `site` leaves the old site, `notebooks` the old notebook, and no process."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.drill
ROOT = Path(__file__).parents[2]
LIMIT_S = 180


def start(*command, cwd=ROOT):
    return subprocess.Popen(
        [sys.executable, "-m", "moe_lab", *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*command, cwd=ROOT):
    process = start(*command, cwd=cwd)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said


def wait_for(happens, what):
    for _ in range(LIMIT_S * 20):
        if happens():
            return
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {LIMIT_S} s")


def kill(process):
    assert process.poll() is None, "it was done before it was killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def all_bytes(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_killed_site_leaves_the_old_one_and_the_next_build_is_whole(tmp_path):
    out = tmp_path / "site"
    finish("site", "--out", out)
    before = all_bytes(out)
    pages = sum(path.suffix == ".html" for path in before)
    fresh = tmp_path / ".unfinished-site"
    for share in (0.0, 0.5, 0.9):
        process = start("site", "--out", out)
        # the lock file is there at once; then the pages come
        wait_for(lambda: fresh.exists() and sum(1 for _ in fresh.rglob("*.html")) > share * pages, "pages")  # noqa: B023
        kill(process)
        assert all_bytes(out) == before, f"after {share:.0%} of the pages"
    finish("site", "--out", out)
    assert all_bytes(out) == before, "the same lessons give the same bytes"
    assert not list(fresh.rglob("*.html"))


def works_in(folder):
    """The folders at or below this one in which processes work."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((process / "cwd").readlink())
    return [place for place in found if place.is_relative_to(folder)]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_killed_run_of_a_notebook_leaves_it_as_it_was_and_no_kernel_behind(tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("moe_lab", "kernels", "data", "notebooks"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    notebook = checkout / "notebooks" / "14_scoreboard.ipynb"
    before = all_bytes(notebook.parent)
    for seconds in (0.0, 3.0):
        process = start("notebooks", "14", cwd=checkout)
        wait_for(lambda: notebook.parent in works_in(checkout), "a kernel")
        time.sleep(seconds)  # the kernel imports, then it runs cells
        kill(process)
        assert all_bytes(notebook.parent) == before
        wait_for(lambda: not works_in(checkout), "the end of the kernel")
    finish("notebooks", "14", cwd=checkout)
    after = all_bytes(notebook.parent)
    changed = {path for path in after if after[path] != before.get(path)}
    assert (
        changed == {Path("14_scoreboard.ipynb"), Path("solutions/14_scoreboard.ipynb")}
        and after.keys() == before.keys()
    )
