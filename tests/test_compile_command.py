"""``python -m moe_lab compile``: the table, the JSON, what it says when something fails or got worse."""

import json
from dataclasses import replace

import pytest

from moe_lab import machine_code
from moe_lab.__main__ import main
from moe_lab.machine_code import Row, write_record

KEYS = ["kernel", "config", "target", "ok", "registers", "spill_bytes", "shared_bytes", "matrix_ops", "error"]
ROWS = [
    Row("dot", "hopper", "sm_90", True, 154, 0, 180224, {"wgmma": 4}),
    Row("dot", "cdna", "gfx942", True, 132, 0, 32768, {"mfma": 48}),
    Row("add", None, "sm_90", True, 16, 0, 0),
]


@pytest.fixture
def compiled(monkeypatch):
    """What the command finds, instead of compiling; and what it asked for."""

    def compile_kernels(*asked, **options):
        compiled.asked = asked, options
        return "3.7.1", machine_code.select_rows(compiled.rows, *asked)

    def compiled():
        """Holds rows."""

    compiled.rows = ROWS
    monkeypatch.setattr(machine_code, "compile_kernels", compile_kernels)
    return compiled


def test_one_kernel_for_one_target_for_real(capfd):
    assert main(["compile", "combine", "--target", "gfx942", "--workers", "1", "--json"]) == 0
    said = capfd.readouterr()
    (row,) = json.loads(said.out)
    assert list(row) == KEYS and (row["kernel"], row["config"], row["target"]) == ("combine", None, "gfx942")
    assert row["ok"] is True and row["spill_bytes"] == 0 and row["matrix_ops"] == {} and row["error"] is None
    assert "compile: 100%" in said.err, "the bar goes to stderr"


def test_the_table(compiled, capsys):
    assert main(["compile"]) == 0
    said = capsys.readouterr().out
    assert "4 wgmma" in said and said.endswith("3 of 3 compiled\n")
    assert compiled.asked == (([], [], None), {"folder": None, "workers": None})


def test_everything_is_passed_on(compiled, tmp_path):
    assert main(f"compile dot --target sm_90 gfx942 --config hopper --workers 3 --folder {tmp_path}".split()) == 0
    assert compiled.asked == ((["dot"], ["sm_90", "gfx942"], "hopper"), {"folder": tmp_path, "workers": 3})


def test_a_row_that_failed_fails_the_command(compiled, capsys):
    compiled.rows = [*ROWS, Row("bad", None, "sm_90", False, error="no")]
    assert main(["compile", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[-1]["error"] == "no"


def test_recorded_and_compared(compiled, capsys, tmp_path):
    path = tmp_path / "record.json"
    assert main(["compile", "--record", str(path)]) == 0
    assert machine_code.read_record(path) == ("3.7.1", ROWS)
    assert main(["compile", "--against", str(path)]) == 0
    assert main(["compile", "dot", "--target", "sm_90", "--against", str(path)]) == 0, "the rest was not asked for"
    capsys.readouterr()
    compiled.rows = [replace(ROWS[0], spill_bytes=8, matrix_ops={"mma": 64}), *ROWS[1:]]
    assert main(["compile", "--against", str(path), "--json"]) == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3
    assert said.err.splitlines() == [
        "worse than recorded (Triton 3.7.1 then, 3.7.1 now):",
        "  dot hopper sm_90 spills 8 bytes, recorded 0",
        "  dot hopper sm_90 has no wgmma instruction any more, recorded 4",
    ]
    assert main(["compile", "add", "--against", str(path)]) == 0


def test_a_file_that_got_worse_for_real(tmp_path, capfd):
    """Recorded with wgmma and without a spill; now it adds on one warp with 24 registers a thread."""
    (tmp_path / "dot.py").write_text('''
"""A product that is none."""
import torch
import triton
import triton.language as tl

@triton.jit
def _dot_kernel(x, SIDE: tl.constexpr):
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tile = tl.load(x + place)
    tl.store(x + place, tile + tl.sum(tile, axis=1)[:, None] * tl.sum(tile, axis=0)[None, :])

def dot(x):
    _dot_kernel[(1,)](x, SIDE=x.shape[0], num_warps=1, maxnreg=24)

SHAPES = {"qwen3": dict(side=64)}

def make_inputs(side, *, dtype, device, seed=0):
    return (torch.empty(side, side, dtype=dtype, device=device),)
''')
    write_record(tmp_path / "record.json", "3.7.1", [replace(ROWS[0], config=None)])
    asked = ["--target", "sm_90", "--workers", "1", "--against", str(tmp_path / "record.json")]
    assert main(["compile", "--folder", str(tmp_path), *asked]) == 1
    said = capfd.readouterr()
    assert said.out.endswith("1 of 1 compiled\n")
    assert "dot sm_90 spills" in said.err and "dot sm_90 has no wgmma instruction any more, recorded 4" in said.err


def test_a_failure_is_not_recorded(compiled, capsys, tmp_path):
    compiled.rows = [Row("bad", None, "sm_90", False, error="no")]
    assert main(["compile", "--record", str(tmp_path / "record.json")]) == 1
    assert "not recorded, 1 of 1 did not compile: bad sm_90" in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "h100"], "target must be one of sm_80, sm_90, sm_100, gfx942, gfx950; got 'h100'"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--against", "nosuch.json"], "no file nosuch.json"),
        (["combine", "--record", "x.json"], "--record is for everything: leave out KERNEL, --target and --config"),
    ],
)
def test_it_says_what_is_wrong_and_fails(arguments, says, capsys):
    assert main(["compile", *arguments]) == 1
    assert says in capsys.readouterr().err


def test_ctrl_c(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine_code, "compile_kernels", interrupt)
    assert main(["compile"]) == 130
    assert capsys.readouterr().err == "moe-lab compile: stopped\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as done:
        main(["compile", "--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    for word in ("sm_80, sm_90, sm_100, gfx942 or gfx950", "--json", "--record", "--against", "no GPU"):
        assert word in " ".join(said.split()), word
