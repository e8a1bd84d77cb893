"""Everything that writes: how it writes version 1 or 2 to a place, and which of them a reader finds there."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from safetensors.torch import load_file

from moe_lab import hf, lesson
from moe_lab.capstone.design import read_design, write_design
from moe_lab.capstone.examples import laptop_design
from moe_lab.checkpoint import latest_checkpoint, publish_folder, read_json, write_json
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.hf.recording import Recording
from moe_lab.layers import MoE
from moe_lab.lm import LanguageModel, load_model
from moe_lab.machine_code.record import read_record, write_record
from moe_lab.machine_code.rows import Row
from moe_lab.notebooks import write as write_notebook
from moe_lab.profiling.trace import ABOUT, Trace, TraceEvent
from moe_lab.scoreboard import page
from moe_lab.site import build as build_site
from moe_lab.train import Trainer

TINY = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4)


@dataclass(frozen=True)
class Writer:
    """``write(place, version)`` with version 1 or 2; ``read(place)`` gives the version, and fails where it is half."""

    name: str
    file: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], int]


def progress(place: Path, version: int) -> None:
    """A reader solves exercise 00.1, then 00.2; what is said of trouble becomes an error here."""
    os.environ["MOE_LAB_PROGRESS"] = str(place)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        lesson.record(f"00.{version}", True)
    if said.getvalue():
        raise OSError(said.getvalue())


def notebook(place: Path, version: int) -> None:
    """A notebook of so many cells."""
    cells = [new_markdown_cell("# A lesson"), new_code_cell("x = 1"), new_code_cell("y = 2")]
    write_notebook(new_notebook(cells=cells[: version + 1]), place)


def table(place: Path, version: int) -> None:
    """A page with rows between its markers; the first version is written by hand."""
    if version == 1:
        place.write_text(f"{page.BEGIN}\n1\n{page.END}\n")
    else:
        page.write_table(place, [])


def read_table(place: Path) -> int:
    """A table that is one of the two."""
    return 1 if page.read_table(place.read_text()) == "1" else 2


def trace(place: Path, version: int) -> None:
    """A trace of so many events."""
    about = dict.fromkeys(ABOUT, "?") | {"kind": "cpu", "shape": {"tokens": 4}, "versions": {"torch": "2.13"}}
    Trace(about, [TraceEvent("mm", "matrix product", "CPU", 10.0, 4.0)] * version).write(place)


def watched(version: int) -> Recording:
    """What was seen of so many tokens."""
    torch.manual_seed(0)
    layer = MoE(8, 8, num_experts=4, top_k=2)
    with hf.watch(layer) as seen:
        layer(torch.randn(version, 8))
    return seen


def model(version: int) -> LanguageModel:
    """A model whose first norm says which one it is."""
    torch.manual_seed(0)
    made = LanguageModel(TINY)
    made.norm.weight.data.fill_(version)
    return made


def checkpoint(place: Path, version: int) -> None:
    """A run's checkpoint of so many steps, the older one deleted."""
    TRAINERS[version].publish(place)


def read_checkpoint(place: Path) -> int:
    """The steps of the newest checkpoint, from which a run can go on; any older one is whole as well."""
    return Trainer.resume(latest_checkpoint(place)).history.steps


def trainers() -> dict[int, Trainer]:
    """Trainers after one step and after two."""
    made = {}
    for version in (1, 2):
        made[version] = Trainer(TINY, TrainConfig(steps=4, batch=2))
        for _ in range(version):
            made[version].step()
    return made


TRAINERS = trainers()


def exported(place: Path, version: int) -> None:
    """What `train --export` writes."""
    publish_folder(place.parent, place.name, model(version).save)


def sources(version: int) -> Path:
    """A project of so many documents, and no lesson."""
    root = Path(tempfile.mkdtemp(prefix="moe-lab-drill-"))
    (root / "docs").mkdir()
    for number in range(version):
        (root / "docs" / f"{number}.md").write_text(f"# Page {number}\n")
    return root


SOURCES = {version: sources(version) for version in (1, 2)}  # while there is room


def site(place: Path, version: int) -> None:
    """A site of so many pages."""
    build_site(place, SOURCES[version])


def read_site(place: Path) -> int:
    """How many pages of a site are there; none is cut off, and the first is this command's."""
    pages = list(place.rglob("*.html"))
    assert all(one.read_text().rstrip().endswith("</html>") for one in pages) and (place / "index.html") in pages
    return len(pages) - 2  # the first, and the search


def first_norm(tensors: dict) -> int:
    """Which model it is."""
    (name,) = [name for name in tensors if name.endswith("norm.weight") and ".blocks." not in f".{name}"]
    return int(tensors[name][0])


WRITERS = [
    Writer("progress", "progress.json", progress, lambda place: len(json.loads(place.read_text()))),
    Writer("record", "record.json", lambda p, v: write_json(p, {"version": v}), lambda p: read_json(p)["version"]),
    Writer("notebook", "lesson.ipynb", notebook, lambda place: len(json.loads(place.read_text())["cells"]) - 1),
    Writer("scoreboard", "page.md", table, read_table),
    Writer("trace", "trace.json", trace, lambda place: len(Trace.read(place).events)),
    Writer(
        "machine code",
        "code.json",
        lambda place, version: write_record(place, "3.7", [Row("add", None, "sm_80", True)] * version),
        lambda place: len(read_record(place)[1]),
    ),
    Writer(
        "design",
        "design.json",
        lambda place, version: write_design(laptop_design(num_hidden_layers=version), place),
        lambda place: read_design(place).config["num_hidden_layers"],
    ),
    Writer("watch", "seen.json", lambda p, v: watched(v).save(p), lambda p: hf.load_watch(p).layers[0].tokens),
    Writer("parquet", "seen.parquet", lambda p, v: watched(v).save(p), lambda p: hf.load_watch(p).layers[0].tokens),
    Writer("export", "model", exported, lambda place: int(load_model(place).norm.weight[0])),
    Writer(
        "transformers",
        "model",
        lambda place, version: hf.export(model(version), place),
        lambda place: first_norm(load_file(place / "model.safetensors")) if read_json(place / "config.json") else 0,
    ),
    Writer("checkpoint", "run", checkpoint, read_checkpoint),
    Writer("site", "site", site, read_site),
]
