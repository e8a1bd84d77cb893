"""Every format of file that the library reads: valid ones, and what is done with one that was taken.

`try_bytes` is the one oracle, of hypothesis and of atheris alike: what is in a file is taken, and then everything that
its reader promises can be read out of it; or it is refused with a documented error that names the file.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save

import moe_lab.kernels  # noqa: F401  (first of all: it switches Triton's interpreter on)
from moe_lab import MoE, hf
from moe_lab.accounting.counts import count
from moe_lab.bench import Measured
from moe_lab.bench import reading as bench
from moe_lab.bench.rows import show_table
from moe_lab.capstone.design import read_design
from moe_lab.checkpoint import read_config, read_tensors
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.exercises.board import MARKS
from moe_lab.experiments import recorded
from moe_lab.folders import DATA
from moe_lab.hf.inspection import inspect_folder, read_shapes
from moe_lab.hf.report import what_ran
from moe_lab.hf.saving import load_watch
from moe_lab.lesson import progress
from moe_lab.lm import LanguageModel, load_model
from moe_lab.machine_code import compare, describe
from moe_lab.machine_code import record as machine_code
from moe_lab.machine_code.rows import Row
from moe_lab.models import read_published
from moe_lab.profiling import Trace, TraceEvent
from moe_lab.profiling.proton import read_proton
from moe_lab.profiling.trace import ABOUT
from moe_lab.roofline import measured_device
from moe_lab.train import History

from .cases import attempt


@dataclass(frozen=True)
class Format:
    """A kind of file: ``read(path)`` reads one and uses it; ``wholes()`` are some that must be taken.

    ``beside`` are the other files of its folder. A reader that ``never_refuses`` takes whatever is there for nothing.
    """

    subject: str
    file: str
    read: Callable[[Path], object]
    wholes: Callable[[], list[bytes]]
    beside: Callable[[], dict[str, bytes]] = dict
    never_refuses: bool = False
    names_the_file: bool = True


def try_bytes(name: str, content: bytes, folder: Path, must: str = "either") -> None:
    """Let a reader meet ``content``: see the top of this file."""
    form = FORMATS[name]
    path = folder / form.file
    path.write_bytes(content)
    says = form.file if form.names_the_file else None
    must = "answer" if form.never_refuses else must
    attempt(form.subject, lambda: (form.read(path), None), refuses=says, must=must)


def prepare(name: str, folder: Path) -> Path:
    """A folder for files of that format, with what lies beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in FORMATS[name].beside().items():
        (folder / file).write_bytes(content)
    return folder


def as_bytes(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def cut(path: Path, *fields: str, most: int = 3) -> bytes:
    """A file of data/ with the first few entries of its lists."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for field in fields:
        value[field] = value[field][:most]
    return json.dumps(value).encode()


def written(write: Callable[[Path], Path], name: str) -> bytes:
    """What the library itself writes."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder, name)).read_bytes()


# ---- records


def read_bench(path: Path) -> None:
    record = bench.read_record(path)
    assert record.provenance and isinstance(record.find(dtype="float32", direction="forward"), list)
    assert all(isinstance(row.verified, bool) and row.times for row in record.rows)
    show_table(record.rows)
    assert [Measured.from_dict(row.as_dict()) for row in record.rows] == record.rows


def bench_records() -> list[bytes]:
    about = dict(device="Chip", threads=2, started="2026-01-01T00:00:00Z", commit="c0" * 20, driver=None, suite="cpu")
    row = Measured("a", "forward", {"tokens": 1}, "float32", 1.0, 2.0, 3.0, 1e-7, 1e-6, flops=10, repeats=3)
    rows = [row.as_dict(), Measured("b", "forward", {"n": 0.5}, "float32", why_not="no").as_dict()]
    files = [cut(path, "rows", most=2) for path in sorted((DATA / "benchmarks").glob("*.json"))[::2]]
    return [*as_bytes({"run": about | {"versions": {"torch": "9"}}, "rows": rows}), *files]


def read_ceilings(path: Path) -> None:
    device = measured_device(path)
    assert device.name and all(device.ridge(dtype) > 0 for dtype in device.flops_per_s)


def read_training(path: Path) -> None:
    record = recorded.read_record(path)
    assert recorded.describe(record)


def training_records() -> list[bytes]:
    whole = json.loads((DATA / "training" / "dense_vs_moe.json").read_text())
    parts = {part: [run | {"curve": run.get("curve", [])[:2]} for run in whole[part]] for part in ("race",)}
    kept = {name: value for name, value in whole.items() if name not in recorded.PARTS}
    return as_bytes(kept, kept | parts)


def read_trace(path: Path) -> None:
    trace = Trace.read(path)
    assert trace.span_us >= 0 and isinstance(trace.lanes, list)
    again = Trace.read(trace.write(path.with_name("again.json")))
    assert again.about == trace.about and again.lanes == trace.lanes and len(again.events) == len(trace.events)


def traces() -> list[bytes]:
    return [cut(DATA / "traces" / "grouped-forward-float32-cpu.json", "traceEvents"), *small_trace()]


def small_trace() -> list[bytes]:
    about = dict.fromkeys(ABOUT, "?") | {"kind": "cuda", "shape": {"tokens": 4}, "versions": {"torch": "2.13"}}
    event = TraceEvent("_up_kernel", "matrix product", "GPU stream 7", 12.5, 30.25, flops=480, bytes=96)
    trace = Trace(about | {"call_us": 50.0}, [event, replace(event, lane="CPU")])
    return [written(trace.write, "trace.json")]


def read_machine_code(path: Path) -> None:
    triton, rows = machine_code.read_record(path)
    assert isinstance(triton, str) and describe(rows)
    names = [(row.kernel, row.config, row.target) for row in rows]
    bad = [row for row in rows if not row.ok]
    assert len(set(names)) < len(names) or len(compare(rows, rows)) == len(bad)
    assert machine_code.select_rows(rows) == rows == [Row(**row.as_dict()) for row in rows]


def machine_code_records() -> list[bytes]:
    rows = [Row("dot", "hopper", "sm_90", True, 154, 0, 180224, {"wgmma": 4}), Row("add", None, "sm_80", True)]
    return [*as_bytes({"triton": "3", "rows": [asdict(row) for row in rows]}), cut(DATA / "machine_code.json", "rows")]


def read_progress(path: Path) -> None:
    before = os.environ.get("MOE_LAB_PROGRESS")
    os.environ["MOE_LAB_PROGRESS"] = str(path)
    try:
        board = progress()
    finally:
        os.environ.pop("MOE_LAB_PROGRESS") if before is None else os.environ.update(MOE_LAB_PROGRESS=before)
    assert all(board.state(exercise) in MARKS for exercise in board)


def read_watch(path: Path) -> None:
    recording = load_watch(path)
    assert recording.table() and repr(recording) and recording._repr_html_()
    assert all(int(layer.load.sum()) >= 0 for layer in recording.layers) and what_ran(recording)


def watches() -> list[bytes]:
    torch.manual_seed(0)
    model = MoE(4, 3, num_experts=4, top_k=2)
    with hf.watch(model, keep=3) as seen, torch.no_grad():
        model(torch.randn(5, 4))
    return [written(seen.save, "watch.json")]


def read_proton_file(path: Path) -> None:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # Triton's own writing is JSON; what is in it is the question here
    assert all(row.total_us > 0 for row in read_proton(tree))


def proton_files() -> list[bytes]:
    kernel = {"frame": {"name": "_up"}, "metrics": {"time (ns)": 2000, "count": 4}, "children": []}
    return as_bytes([{"frame": {"name": "ROOT"}, "metrics": {}, "children": [kernel, kernel]}, {}])


# ---- configs


def use_counts(path: Path) -> None:
    counts = count(path)
    assert sum(counts.params_by_component.values()) == counts.total_params >= 0
    assert 0 <= sum(counts.active_params_by_component.values()) == counts.active_params
    assert counts.bytes("bfloat16") == 2 * counts.total_params and repr(counts) and counts.table()


def transformers_configs() -> list[bytes]:
    return [json.dumps(json.loads(path.read_text())["config"]).encode() for path in (DATA / "models").glob("*.json")]


def use_design(path: Path) -> None:
    assert read_design(path).as_dict()


def designs() -> list[bytes]:
    config = json.loads((DATA / "models" / "mixtral-8x7b.json").read_text())["config"]
    return as_bytes({"config": config}, {"config": config, "method": "switch", "options": {}, "devices": 4})


# ---- checkpoints

TINY = LanguageModelConfig(d_model=4, num_layers=1, num_heads=1, context=3, d_expert=2, num_experts=2, top_k=1)


def tiny_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return LanguageModel(TINY).state_dict()


def use_language_model(path: Path) -> None:
    """A folder of ours: `load_model` on it, and a byte more to write."""
    model = load_model(path.parent)
    assert len(model.write("a", 1)) >= 1 and len(model.read("a")) == len(model.layers)


def use_tensors(path: Path) -> None:
    """Any safetensors file, as both readers see it."""
    shapes, tensors = read_shapes(path), read_tensors(path)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def tensor_files() -> list[bytes]:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    several = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in dtypes}
    return [save(several), save({"x": torch.zeros(0, 4), "y": torch.tensor(1.5)}, {"format": "pt"}), save({})]


def index_files() -> list[bytes]:
    names = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    return as_bytes({"metadata": {"total_size": 24}, "weight_map": names})


def beside_index() -> dict[str, bytes]:
    one, two = ({name: torch.ones(2) for name in names} for names in ("ab", "c"))
    config = json.dumps({"model_type": "mixtral", "hidden_size": 2}).encode()
    return {"one.safetensors": save(one), "two.safetensors": save(two), "config.json": config}


FORMATS: dict[str, Format] = {
    "bench record": Format("records", "record.json", read_bench, bench_records),
    "ceilings": Format(
        "records",
        "ceilings.json",
        read_ceilings,
        lambda: [cut(path, "rows", most=99) for path in (DATA / "benchmarks").glob("ceilings-*.json")],
    ),
    "training record": Format("records", "grid.json", read_training, training_records),
    "trace": Format("records", "trace.json", read_trace, traces),
    "machine code": Format("records", "code.json", read_machine_code, machine_code_records),
    "progress": Format(
        "records",
        "progress.json",
        read_progress,
        lambda: as_bytes({"00.1": True, "01.2": False}, {}),
        never_refuses=True,
    ),
    "watch": Format("records", "watch.json", read_watch, watches),
    "proton": Format("records", "p.hatchet", read_proton_file, proton_files, names_the_file=False),
    "published model": Format(
        "records",
        "model.json",
        read_published,
        lambda: [path.read_bytes() for path in sorted((DATA / "models").glob("*.json"))[::6]],
    ),
    "history": Format(
        "records",
        "history.json",
        lambda path: read_config(History, path).steps,
        lambda: as_bytes(asdict(History([1.0, 0.5], [[1, 1.0]], [[1, [[2, 2]]]], 1.5, "c0ffee", {"cores": 2}))),
    ),
    "Transformers' config": Format("configs", "config.json", use_counts, transformers_configs, names_the_file=False),
    "model config": Format(
        "checkpoints",
        "config.json",
        use_language_model,
        lambda: as_bytes(asdict(TINY)),
        lambda: {"model.safetensors": save(tiny_tensors())},
        names_the_file=False,
    ),
    "training config": Format(
        "checkpoints",
        "train.json",
        lambda path: read_config(TrainConfig, path),
        lambda: as_bytes(asdict(TrainConfig())),
    ),
    "design": Format("configs", "design.json", use_design, designs, names_the_file=False),
    "safetensors": Format("checkpoints", "x.safetensors", use_tensors, tensor_files),
    "model weights": Format(
        "checkpoints",
        "model.safetensors",
        use_language_model,
        lambda: [save(tiny_tensors())],
        lambda: {"config.json": as_bytes(asdict(TINY))[0]},
        names_the_file=False,
    ),
    "index": Format(
        "checkpoints",
        "model.safetensors.index.json",
        lambda path: inspect_folder(path.parent).numbers,
        index_files,
        beside_index,
        names_the_file=False,
    ),
}
"""What can be in a file, by a name for it."""

GUIDED = (
    "bench record",
    "trace",
    "machine code",
    "watch",
    "Transformers' config",
    "model config",
    "index",
    "safetensors",
)
"""Formats that atheris tries as well, guided by which lines of the library an input reaches."""
