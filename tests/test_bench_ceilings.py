"""The suite of ceilings: what it counts, that it refuses a wrong product, and that its record can be read back."""

import itertools

import pytest
import torch

from moe_lab import roofline
from moe_lab.__main__ import main
from moe_lab.bench import SUITES, Measured, machine, run, show_table
from moe_lab.bench import record as recorder
from moe_lab.checkpoint import read_json
from moe_lab.roofline import BYTES, best_rates, measured_device


@pytest.fixture
def clean_tree(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "git", lambda *arguments: "c0ffee" * 6 if arguments[0] == "rev-parse" else "")
    monkeypatch.setattr(recorder, "UNFINISHED", tmp_path / "unfinished")


@pytest.fixture
def brief(monkeypatch):
    """The second that each record spends on the machine's ceilings, made short."""
    measure = roofline.measure_ceilings
    monkeypatch.setattr(machine, "measure_ceilings", lambda **options: measure(sizes=(32,), copy_bytes=64, repeats=1))


def test_rows_count_flops_and_bytes():
    rows, _ = run("ceilings", SUITES["ceilings"](quick=True), None)
    products, copies = ([row for row in rows if row.implementation == name] for name in ("matrix product", "copy"))
    assert [(row.dtype, row.shape["size"]) for row in products] == list(itertools.product(BYTES, (64, 96, 128)))
    assert all(row.flops == 2 * row.shape["size"] ** 3 and row.bytes is None for row in products)
    assert all(row.bytes == 8 * row.shape["elements"] and row.flops is None for row in copies) and len(copies) == 2
    assert all(row.tolerance <= 1e-2 and row.verified for row in rows)


def test_a_wrong_product_or_copy_is_refused(monkeypatch):
    right, copy = torch.mm, torch.Tensor.copy_
    monkeypatch.setattr(torch, "mm", lambda a, b, out=None: right(a, b, out=out) * 1.02)
    with pytest.raises(ValueError, match=r"matrix product on \{'size': 64\} is off by 0.0[12]"):
        run("ceilings", SUITES["ceilings"](quick=True)[:1], None)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda target, source: copy(target[1:], source[1:]))
    with pytest.raises(ValueError, match=r"copy on .* is off by 1.0, allowed 0.0"):
        run("ceilings", SUITES["ceilings"](quick=True)[-1:], None)


def test_the_record_is_a_device(tmp_path, clean_tree, brief):
    rows, path = run("ceilings", SUITES["ceilings"](quick=True), tmp_path)
    assert path.name.startswith("ceilings-") and path.name.endswith("-c0ffeec0f.json")
    device = measured_device(path)
    assert device.kind == "measured" and device.source == path.name
    flops_per_s, bytes_per_s = best_rates((row.dtype, row.flops, row.bytes, row.ms_p50) for row in rows)
    assert device.flops_per_s == pytest.approx(flops_per_s) and device.bytes_per_s == pytest.approx(bytes_per_s)
    started = read_json(path)["run"]["started"]
    assert device.name.endswith(started[:10]) and read_json(path)["run"]["device"] in device.name


def test_every_record_holds_the_ceilings_of_its_machine(tmp_path, clean_tree, brief):
    for suite in SUITES:
        _, path = run(suite, [], tmp_path)
        ceilings = read_json(path)["run"]["ceilings"]
        assert set(ceilings["flops_per_s"]) == set(BYTES) and ceilings["bytes_per_s"] > 0
        assert all(rate > 0 for rate in ceilings["flops_per_s"].values())


def test_the_table_shows_rates_where_there_is_no_baseline(capsys):
    times = dict(ms_p20=1.0, error=0.0, tolerance=0.0)
    product = Measured("product", "forward", {"n": 8}, "float32", ms_p50=2.0, ms_p80=3.0, flops=5 * 10**9, **times)
    moved = Measured("copy", "forward", {"n": 9}, "float32", ms_p50=4.0, ms_p80=5.0, bytes=8 * 10**6, **times)
    lines = show_table([product, moved], "torch.topk").splitlines()
    assert lines[1].split()[-2:] == ["2.5000", "TFLOP/s"] and lines[3].split()[-2:] == ["2.0", "GB/s"]
    assert main(["bench", "ceilings", "--quick", "--no-record"]) == 0
    assert "TFLOP/s" in capsys.readouterr().out
