"""Records read back: the newest, by device; provenance; damaged files."""

import json

import pytest

from moe_lab.bench import Measured
from moe_lab.bench.reading import newest_record, read_record


def write(folder, name, started, driver=None, rows=()):
    about = dict(device="Chip", threads=2, started=started, commit="c0ffee" * 6, driver=driver, versions={"torch": "9"})
    path = folder / name
    path.write_text(json.dumps({"run": about, "rows": [row.as_dict() for row in rows]}))
    return path


def test_the_newest_of_a_suite_and_device(tmp_path):
    write(tmp_path, "cpu-cpu-a.json", "2026-01-02T00:00:00Z")
    write(tmp_path, "cpu-cpu-b.json", "2026-01-01T00:00:00Z")
    write(tmp_path, "layer-h200-a.json", "2026-01-03T00:00:00Z", driver="13.0")
    assert newest_record("cpu", folder=tmp_path).about["started"] == "2026-01-02T00:00:00Z"
    assert newest_record("layer", "cpu", tmp_path) is None and newest_record("align", folder=tmp_path) is None
    assert newest_record("layer", "gpu", tmp_path).provenance == "Chip, 2026-01-03, commit c0ffeec0f, torch 9"
    with pytest.raises(ValueError, match="device must be one of cpu, gpu, or None; got 'tpu'"):
        newest_record("cpu", "tpu", tmp_path)


def test_rows_are_found_by_size_and_by_field(tmp_path):
    rows = [Measured("a", "forward", {"tokens": n}, "float32", why_not="no") for n in (1, 2)]
    record = read_record(write(tmp_path, "x.json", "2026-01-01T00:00:00Z", rows=rows))
    assert record.find(tokens=2, implementation="a") == [rows[1]] and record.find(dtype="bfloat16") == []
    assert record.provenance == "Chip, 2 threads, 2026-01-01, commit c0ffeec0f, torch 9"


@pytest.mark.parametrize(
    "text", ["{}", '{"run": 1, "rows": []}', '{"run": {}, "rows": [3]}', '{"run": {}, "rows": [{}]}', "{"]
)
def test_a_damaged_record_is_refused(text, tmp_path):
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"damaged\.json"):
        read_record(path)
