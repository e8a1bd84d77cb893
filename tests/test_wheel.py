"""The wheel: built without a network, unpacked where no checkout is near, it does what the checkout does."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("moe_lab", "kernels", "data", "pyproject.toml", "setup.py", "README.md", "LICENSE")
LOCAL_PIP = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")

# One process for all, since each would import torch again.
WORKS = """
import contextlib, io, json, os, sys
import moe_lab.kernels
from moe_lab.__main__ import main
import torch
from moe_lab.kernels.sort_tokens import sort_tokens

def said(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([*arguments, "--json"])
    return code, json.loads(out.getvalue())

print(json.dumps({
    "package": moe_lab.__file__,
    "kernels": list(moe_lab.kernels.__path__),
    "interpreted": os.environ.get("TRITON_INTERPRET"),
    "doctor": said("doctor"),
    "count": said("count", "mixtral-8x7b"),
    "compile": said("compile", "combine", "--target", "sm_90", "--workers", "1"),
    "load": sort_tokens(torch.tensor([[0, 2], [2, 0]]), 3, 4).tile_expert.tolist()[:2],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout, without what earlier builds may have left in it."""
    copy = tmp_path_factory.mktemp("copy")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", *LOCAL_PIP, "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True)
    (path,) = (copy / "dist").glob("*.whl")
    return path


def test_it_carries_every_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    package = [path.relative_to(ROOT) for path in (ROOT / "moe_lab").rglob("*") if "__pycache__" not in path.parts]
    beside = [path.relative_to(ROOT) for name in ("kernels", "data") for path in (ROOT / name).rglob("*")]
    wanted = {str(path) for path in package if (ROOT / path).is_file()}
    wanted |= {f"moe_lab/{path}" for path in beside if (ROOT / path).is_file() and "__pycache__" not in path.parts}
    assert sorted(wanted - packed) == []
    assert [name for name in packed if not name.startswith(("moe_lab/", "moe_lab-"))] == []


def test_it_works_far_from_the_checkout(wheel, tmp_path):
    installed = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", *LOCAL_PIP, "--target", installed, wheel]
    subprocess.run(command, check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", WORKS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["package"] == str(installed / "moe_lab" / "__init__.py")
    assert found["kernels"] == [str(installed / "moe_lab" / "kernels")]
    assert found["doctor"][0] == 0 and {"name": "python", "found": True}.items() <= found["doctor"][1][0].items()
    assert found["count"][0] == 0 and found["count"][1]["total_params"] == 46_702_792_704
    code, rows = found["compile"]
    assert code == 0 and rows and all(row["ok"] and row["kernel"] == "combine" for row in rows)
    assert found["load"] == [0, 2]
    assert (installed / "bin" / "moe-lab").is_file()
