"""`compile_kernels` on a folder of kernel files made for it: the good one, and every way to be bad."""

import types
from dataclasses import replace

import pytest
import torch

from moe_lab.machine_code import Row, compare, compile_kernels, launches, select_jobs
from moe_lab.machine_code.build import Job, read_answers

FILE = '''
"""One kernel on one square."""

import torch
import triton
import triton.language as tl

@triton.jit
def _first_kernel(x, y, SIDE: tl.constexpr, DOUBLE: tl.constexpr = False):
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tile = tl.load(x + place)
    {body}

@triton.jit
def _second_kernel(y, N: tl.constexpr):
    tl.store(y, N)

def {launcher}(x, double=False, *, config=None):
    y = torch.empty_like(x)
    {launch}
    return y

SHAPES = {{"qwen3": dict(side=64), "small": dict(side=16)}}

def make_inputs(side, *, dtype, device, seed=0):
    return (torch.empty(side, side, dtype=dtype, device=device),)
'''
DOT = "tl.store(y + place, tl.dot(tile, tile).to(tl.bfloat16))"
LAUNCH = "_first_kernel[(1,)](x, y, SIDE=x.shape[0])"
FILES = {
    "dot": {},
    "lost": dict(body="tl.store(y + place, tile + tile)"),
    "spills": dict(
        body="tl.store(y + place, tile + tl.sum(tile, axis=1)[:, None] * tl.sum(tile, axis=0)[None, :])",
        launch="_first_kernel[(1,)](x, y, SIDE=x.shape[0], num_warps=1, maxnreg=24)",
    ),
    "starved": dict(launch="_first_kernel[(1,)](x, y, SIDE=x.shape[0], maxnreg=32)"),
    "typo": dict(body="tl.stoer(y + place, tile)"),
    "several": dict(launch=f"{LAUNCH}; _second_kernel[(1,)](y, N=1); _second_kernel[(1,)](y, N=2)"),
    "half": dict(body="tl.stoer(y + place, tile)", launch=f"{LAUNCH}; _second_kernel[(1,)](y, N=1)"),
    "crash": dict(launch=f"{LAUNCH}; import os; os.abort()"),
    "no_launch": dict(launch="pass"),
    "no_import": dict(end="import nowhere"),
    "no_launcher": dict(launcher="another"),
    "no_shape": dict(shape="mixtral"),
    "no_family": dict(end='CONFIGS = {"hopper": {}, "volta": {}}'),
    "no_option": dict(end='VARIANTS = {"turned": dict(turned=True)}'),
    "ways": dict(
        body="tl.store(y + place, tl.dot(tile, tile).to(y.dtype.element_ty) * (2 if DOUBLE else 1))",
        launch="_first_kernel[(1,)](x, y, SIDE=x.shape[0], DOUBLE=double)",
        end='CONFIGS = {"interpreter": {}, "hopper": {}, "float32": {}}\nVARIANTS = {"double": dict(double=True)}',
    ),
}


def write_file(folder, name, body=DOT, launch=LAUNCH, launcher=None, shape="qwen3", end=""):
    text = FILE.format(body=body, launch=launch, launcher=launcher or name).replace("qwen3", shape)
    (folder / f"{name}.py").write_text(f"{text}\n{end}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("kernels")
    for name, changes in FILES.items():
        write_file(made, name, **changes)
    (made / "_helper.py").write_text("raise SystemExit('no kernel file')")
    return made


@pytest.fixture(scope="module")
def rows(folder):
    """Those of every file, for sm_90: file -> its rows."""
    triton, rows = compile_kernels((), ["sm_90"], folder=folder, workers=2)
    assert triton[0].isdigit() and [row.file for row in rows] == sorted((row.file for row in rows), key=order)
    return {name: [row for row in rows if row.file == name] for name in FILES}


def order(name):
    """Files that cannot be imported come first."""
    return (name not in ("no_import", "no_family"), name)


def test_a_good_one(rows):
    (row,) = rows["dot"]
    assert (row.name, row.ok, row.error, row.spill_bytes) == ("dot sm_90", True, None, 0)
    assert list(row.matrix_ops) == ["wgmma"] and row.registers > 16 and row.shared_bytes >= 64 * 64 * 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lost", "dot sm_90 has no wgmma instruction any more, recorded"),
        ("spills", "dot sm_90 spills"),
        ("typo", "dot sm_90 does not compile: at 4:4"),
    ],
)
def test_what_got_worse_is_seen(name, says, rows):
    (row,), (before,) = rows[name], rows["dot"]
    assert any(sentence.startswith(says) for sentence in compare([before], [replace(row, kernel="dot")]))


def test_spills_are_counted(rows):
    (row,) = rows["spills"]
    assert row.ok and row.spill_bytes > 100 and row.registers <= 24


def test_every_launch_has_a_row(rows):
    assert [row.kernel for row in rows["several"]] == ["several/first", "several/second", "several/second#2"]
    assert all(row.ok for row in rows["several"])
    assert [bool(row.matrix_ops) for row in rows["several"]] == [True, False, False]


def test_a_launch_that_fails_costs_only_itself(rows):
    first, second = rows["half"]
    assert (first.kernel, first.ok, second.kernel, second.ok) == ("half/first", False, "half/second", True)


def test_a_crash_costs_the_rest_of_its_file_and_nothing_else(rows):
    first, rest = rows["crash"]
    assert first.kernel == "crash/first" and first.ok
    assert rest.name == "crash sm_90" and rest.error.startswith("the compiler's process ended (SIGABRT)")


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("typo", "sm_90", "has no attribute 'stoer'"),
        ("starved", "sm_90", "ptxas fatal"),
        ("no_launch", "sm_90", "no_launch launched no kernel on the shape 'qwen3'"),
        ("no_import", None, "ModuleNotFoundError: No module named 'nowhere'"),
        ("no_launcher", "sm_90", "no_launcher.py has no function no_launcher to launch it with"),
        ("no_shape", "sm_90", "SHAPES of no_shape.py has no 'qwen3'"),
        ("no_family", None, "config must begin with one of interpreter, "),
    ],
)
def test_a_failure_says_why(name, target, says, rows):
    (row,) = rows[name]
    assert not row.ok and says in row.error and (row.target, row.registers, row.matrix_ops) == (target, None, {})


def test_a_message_of_the_assembler_ends_where_it_stops_helping(rows):
    assert (
        "Repro command" not in rows["starved"][0].error and rows["starved"][0].error == rows["starved"][0].error.strip()
    )


def test_a_variant_with_an_unknown_option_fails_alone(rows):
    plain, turned = rows["no_option"]
    assert plain.ok and turned.kernel == "no_option:turned"
    assert turned.error == "VARIANTS of no_option.py has 'turned', which neither no_option nor make_inputs takes"


def test_configurations_and_variants(rows):
    assert [row.name for row in rows["ways"]] == ["ways hopper sm_90", "ways float32 sm_90", "ways:double hopper sm_90"]
    assert all(row.ok for row in rows["ways"])
    assert [list(row.matrix_ops) for row in rows["ways"]] == [["wgmma"]] * 3, "tf32 counts as well"
    half, full, _ = (row.shared_bytes for row in rows["ways"])
    assert full > half, "the same tile in float32"


def test_a_hang_is_given_up(tmp_path):
    write_file(tmp_path, "hang", launch="import time; time.sleep(1000)")
    _, (row,) = compile_kernels((), ["sm_80"], folder=tmp_path, workers=1, limit_s=1)
    assert (row.name, row.ok, row.error) == ("hang sm_80", False, "no answer within 1 s")


def test_what_is_refused(tmp_path, folder, unchecked_shapes):
    with pytest.raises(ValueError, match="target must be one of sm_80, "):
        compile_kernels(targets=["h100"])
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        compile_kernels(workers=0)
    with pytest.raises(ValueError, match=r"kernel must be one of crash, dot, .*; got 'dott'"):
        compile_kernels(["dott"], folder=folder, workers=1)
    with pytest.raises(ValueError, match="there are no kernel files in "):
        compile_kernels(folder=tmp_path, workers=1)


WAYS = {"configs": ["interpreter", "ampere", "ampere_small", "float32"], "variants": [None, "turned"]}


def test_jobs():
    assert select_jobs({"add": {"configs": [None], "variants": [None]}}, ["gfx942", "sm_80"]) == [
        Job("add", None, None, "gfx942"),
        Job("add", None, None, "sm_80"),
    ]
    assert [(job.label, job.config) for job in select_jobs({"dot": WAYS}, ["sm_80", "gfx942"])] == [
        ("dot", "ampere"),
        ("dot", "ampere_small"),
        ("dot", "float32"),
        ("dot", "float32"),
        ("dot:turned", "ampere"),
        ("dot:turned", "ampere_small"),
    ]
    assert [job.label for job in select_jobs({"dot": WAYS}, ["sm_80"], "ampere_small")] == ["dot", "dot:turned"]
    assert select_jobs({}, ["sm_80"], "ampere") == []


@pytest.mark.parametrize(
    ("known", "config", "says"),
    [
        ({"dot": WAYS}, "hopper", "config must be one of interpreter, ampere, ampere_small, float32; got 'hopper'"),
        ({"add": {"configs": [None], "variants": [None]}}, "hopper", "must be left out, since these kernels have none"),
        ({"dot": WAYS}, "interpreter", "nothing to compile: config 'interpreter' is meant for none of sm_90"),
        (
            {"dot": WAYS | {"configs": ["ampere"]}},
            None,
            "nothing to compile: what these kernels have is meant for none",
        ),
    ],
)
def test_no_jobs(known, config, says):
    with pytest.raises(ValueError, match=says):
        select_jobs(known, ["sm_90"], config)


def test_a_failure_belongs_to_the_launch_that_it_interrupted():
    job = Job("sort", None, None, "sm_80")
    answers = [{"launch": "count"}, {"row": {"ok": True}}, {"launch": "place"}]
    assert read_answers(job, answers, "it died") == [
        Row("sort/count", None, "sm_80", True),
        Row("sort/place", None, "sm_80", False, error="it died"),
    ]
    assert read_answers(job, answers[:1], "it died") == [Row("sort", None, "sm_80", False, error="it died")]
    assert read_answers(job, [], "it died") == [Row("sort", None, "sm_80", False, error="it died")]


@pytest.fixture
def module(monkeypatch):
    """A kernel file as an object, whose `make_inputs` gives what it was asked for."""

    def make_inputs(rows, block_m, *, turned=False, dtype, device, seed=0):
        return rows, block_m, turned, dtype, device

    def dot(rows, block_m, turned, dtype, device, gather=False, *, store=True, config=None):
        raise AssertionError("nobody launches it")

    made = types.SimpleNamespace(dot=dot, make_inputs=make_inputs, SHAPES={"qwen3": dict(rows=9, block_m=128)})
    made.VARIANTS = {"turned": dict(turned=True), "apart": dict(rows=7, gather=True, store=False)}
    monkeypatch.setattr(launches, "kernel_file", lambda name: made)
    launches.make_arguments.cache_clear()
    yield made
    launches.make_arguments.cache_clear()


def test_where_a_variant_goes(module):
    plain = (9, 128, False, torch.bfloat16, "meta")
    assert launches.make_arguments("dot", None, False, "bfloat16") == (plain, {})
    assert launches.make_arguments("dot", None, True, "float32") == ((9, 16, False, torch.float32, "meta"), {})
    assert launches.make_arguments("dot", "turned", False, "bfloat16") == ((9, 128, True, *plain[3:]), {})
    apart = launches.make_arguments("dot", "apart", False, "bfloat16")
    assert apart == ((7, *plain[1:]), dict(gather=True, store=False))


def test_ways_to_launch(module):
    assert launches.ways_to_launch("dot") == {"configs": [None], "variants": [None, "turned", "apart"]}
    del module.VARIANTS
    module.CONFIGS = {"hopper": {}, "cdna_small": {}}
    assert launches.ways_to_launch("dot") == {"configs": ["hopper", "cdna_small"], "variants": [None]}
