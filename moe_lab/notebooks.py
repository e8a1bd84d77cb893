"""Run the lessons and write their outputs; and the rules that every lesson keeps."""

import ast
import json
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tqdm.auto import tqdm

from moe_lab.folders import NOTEBOOKS
from moe_lab.lesson_rules import voice_problems
from moe_lab.profiling.machine import processor_name
from moe_lab.writing import check_writable, write_whole

FOLDER = NOTEBOOKS
MAX_BYTES = 300_000
MAX_CELL_LINES = 25
CELL_TIMEOUT_S = 120
NO_COMPARISON = "nbval-ignore-output"  # for cells that print a time; everything else is compared
MAX_NOT_COMPARED = 3
WIDGET = "application/vnd.jupyter.widget-view+json"
FORBIDDEN = {
    r"^\s*[!%]": "a shell or magic command",
    r"https?://": "an address in code: lessons run without a network",
    r"\b(requests|urllib|httpx)\b": "a network library",
    r"['\"](/|[A-Za-z]:\\)": "an absolute path",
    r"pip install": "an installation",
}
SECTIONS = ("Predict", "Explore", "Exercises", "Check against", "Pitfall", "Summary", "References", "Next")


def lessons(folder: Path = FOLDER) -> list[Path]:
    """Every notebook below the folder, in order; lessons are found, never listed by hand."""
    return sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def execute(path: Path) -> None:
    """Run a notebook top to bottom in its own folder and write it back with its outputs, or leave it as it was.

    Its metadata say how long the run took by the clock, a new kernel's start included, on which machine, and when.

    Raises nbclient's CellExecutionError, with the cell and its traceback, if a cell fails; CannotWrite, before it runs,
    where its folder cannot be written.
    """
    check_writable(path)
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MOE_LAB_PROGRESS": str(Path(folder) / "progress.json")}
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_S,
            kernel_name="python3",
            coalesce_streams=True,  # or timing decides how many pieces a cell's prints are saved in
            store_widget_state=False,  # GitHub refuses a notebook whose widget state is incomplete
            resources={"metadata": {"path": str(path.parent)}},
        )
        started = time.perf_counter()
        client.execute(env=environment)
        took = time.perf_counter() - started
    notebook.metadata["moe_lab"] = {
        "run_seconds": round(took, 1),
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    write(notebook, path)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook without what changes from run to run: timestamps, ids, versions; its measured time stays."""
    measured = {key: notebook.metadata[key] for key in ("moe_lab",) if key in notebook.metadata}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        **measured,
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        # a progress bar lives in widget state, which is not kept; what is left says "0%" for ever
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_progress_bar(output)]
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output.data[WIDGET]["model_id"] = cell.id  # drawn anew in each run, and the model is not kept
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    write_whole(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _is_progress_bar(output: nbformat.NotebookNode) -> bool:
    return bool(re.match(r"[^\n]*\b0%\|", "".join(output.get("data", {}).get("text/plain", ""))))


def execute_all(only: str = "") -> None:
    """Run every lesson whose file name starts with ``only``; raises ValueError if there is none."""
    paths = [path for path in lessons() if path.name.startswith(only)]
    if not paths:
        raise ValueError(f"no notebook in {FOLDER} begins with {only!r}")
    for path in tqdm(paths, desc="notebooks"):
        execute(path)


def problems(path: Path) -> list[str]:
    """What is wrong with a notebook, in words; an empty list if nothing is."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = [f"{path.stat().st_size:,} bytes, allowed {MAX_BYTES:,}"] if path.stat().st_size > MAX_BYTES else []
    if "widgets" in notebook.metadata:
        found.append("it holds widget state")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("it was not executed once, in order, from a fresh kernel (make notebooks)")
    solution = path.parent.name == "solutions"
    found += _prose_problems(prose, notebook, solution)
    found += [] if solution else voice_problems(notebook)
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number}: {problem}" for problem in _cell_problems(cell)]
    ignored = sum(NO_COMPARISON in cell.metadata.get("tags", []) for cell in code)
    if ignored > MAX_NOT_COMPARED:
        found.append(f"{ignored} cells are not compared, allowed {MAX_NOT_COMPARED}")
    return found


def _prose_problems(prose: str, notebook: nbformat.NotebookNode, solution: bool) -> list[str]:
    """A title first, objectives, all sections of the template, and alt text on every picture."""
    found = []
    if not notebook.cells or not re.match(r"# \d\d · \S", notebook.cells[0].source):
        found.append("the first cell must be a title: '# NN · Title'")
    if not solution:
        if "You will be able to" not in prose:
            found.append("no objectives: 'You will be able to'")
        headings = re.findall(r"^#+ (.*)", prose, flags=re.MULTILINE)
        found += [f"no section '{s}'" for s in SECTIONS if not any(h.startswith(s) for h in headings)]
    found += ["a picture without alt text" for alt in re.findall(r"!\[(.*?)\]\(", prose) if not alt.strip()]
    return found


def _cell_problems(cell: nbformat.NotebookNode) -> list[str]:
    """Short, offline, without errors, skips or silent pictures."""
    found = []
    if len(cell.source.splitlines()) > MAX_CELL_LINES:
        found.append(f"{len(cell.source.splitlines())} lines, allowed {MAX_CELL_LINES}")
    for pattern, what in FORBIDDEN.items():
        if re.search(pattern, cell.source, flags=re.MULTILINE):
            found.append(what)
    try:
        ast.parse(cell.source)
    except SyntaxError as error:
        found.append(f"not plain Python: {error.msg}")
    if re.search(r"nbval[-_]skip", cell.source + " ".join(cell.metadata.get("tags", [])), flags=re.IGNORECASE):
        found.append("it is skipped by the test")
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(f"it stopped with {output.ename}")
        data = output.get("data", {})
        if "image/png" in data or "image/svg+xml" in data:
            found.append("a picture without alt text (use ml.show)")
        if re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", "".join(data.get("text/html", ""))):
            found.append("an <img> without alt text")
        if re.search(r"(/home/|/Users/|/root/|/work/)", json.dumps(output)):
            found.append("its output holds a path of the machine that ran it")
    return found
