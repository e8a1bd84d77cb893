"""Every kernel compiled for two of the five GPUs and held against the record; `make compile` holds all five to it.

None may break, spill, or lose its tensor cores. Two, because this is the slowest test: all take about 200 seconds of
one core where Triton's cache is empty. For the same reason a variant is compiled in one of its two tiles for each of
the two, the large one for NVIDIA and the small one for AMD. Registers and shared memory are not compared: they may
change.

With another version of Triton than the recorded one every kernel must still compile and keep its matrix instructions,
and no product may spill where its rows are aligned; what else spills is then that compiler's choice.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moe_lab.machine_code import build, compare, compile_kernels, read_record, select_jobs, select_rows

ROOT = Path(__file__).parents[1]
GEMMS = ("grouped_gemm", "grouped_up", "grouped_weight_gradient")
TESTED = ("sm_90", "gfx942")
KINDS = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma", "gfx950": "mfma"}


@pytest.fixture(scope="module")
def record():
    return read_record(ROOT / "data" / "machine_code.json")


def is_tested(kernel, config, target):
    """Whether it is not a variant in the tile that only `make compile` tries on that GPU."""
    return ":" not in kernel or config is None or config.endswith("_small") == (target == "gfx942")


def test_every_kernel_compiles_for_every_target_and_nothing_got_worse(record, monkeypatch):
    """One test, so that everything is compiled once however the tests are spread over processes."""
    monkeypatch.setattr(
        build,
        "select_jobs",
        lambda *given: [job for job in select_jobs(*given) if is_tested(job.label, job.config, job.target)],
    )
    (before, recorded), (now, rows) = record, compile_kernels(targets=TESTED)
    recorded = [row for row in select_rows(recorded, targets=TESTED) if is_tested(row.kernel, row.config, row.target)]
    if now != before:
        print(f"Triton {now} is not the recorded {before}: only the products on aligned rows are held to their spills")
        rows = [row if is_aligned_product(row) else replace(row, spill_bytes=0) for row in rows]
    spilled = [f"{row.name} spills {row.spill_bytes} bytes" for row in rows if row.spill_bytes]
    wrong = [*compare(recorded, rows), *spilled, *find_other_products(rows), *find_gaps(rows)]
    assert not wrong, "\n".join([f"recorded with Triton {before}, compiled with {now}:", *wrong])


def is_aligned_product(row):
    return row.file in GEMMS and not row.kernel.endswith(":unaligned")


def find_other_products(rows):
    """Tiles of 16 rows are too few for wgmma and tcgen05, which take 64 at a time; mma multiplies those."""
    for row in rows:
        if row.file in GEMMS and row.config != "float32":
            few = row.config == "hopper_small" and row.file != "grouped_weight_gradient"
            want = "mma" if few else KINDS[row.target]
            if list(row.matrix_ops) != [want]:
                yield f"{row.name} has {row.matrix_ops or 'no matrix instructions'} and should have {want}"


def find_gaps(rows):
    reached = {}
    for row in rows:
        reached.setdefault(row.kernel, set()).add(row.target)
    yield from (f"{name} is not compiled for every target" for name in reached if reached[name] != set(TESTED))
    ways = {"grouped_gemm:transposed", "grouped_up:gather", "grouped_up:inference", "grouped_up:ungated"}
    ways |= {path.stem for path in (ROOT / "kernels").glob("*.py") if not path.name.startswith("_")}
    ways |= {f"{name}:unaligned" for name in GEMMS}
    yield from (f"{name} is not compiled" for name in ways - set(reached) - {row.file for row in rows})


def test_the_record_is_of_the_pinned_triton(record):
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = any(pin.startswith(f"triton=={record[0]} ;") for pin in pins)
    assert pinned, "write it anew: data/README.md has the command"


def test_the_record_has_the_fields_of_the_json(record):
    rows = json.loads((ROOT / "data" / "machine_code.json").read_text())["rows"]
    assert [row.as_dict() for row in record[1]] == rows
    assert all(row["ok"] and row["error"] is None for row in rows)
