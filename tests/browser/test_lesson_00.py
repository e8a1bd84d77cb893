"""In JupyterLab: lesson 00 from its first cell to its last, as a reader runs it; then every widget of the lab."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from moe_lab import widgets
from moe_lab.notebooks import write
from moe_lab.site.programs import widget_programs

from ..listening import addresses, outside
from .reactions import SAID, change_by_keyboard, change_by_mouse

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_start_here.ipynb"
TOKEN = "for-this-test"  # bound to localhost, gone with the test
START_S, RUN_S = 60_000, 90_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a copy of the lessons (it saves by itself, and must not touch ours): address and folder."""
    tmp_path = tmp_path_factory.mktemp("lab")
    root = tmp_path / "lab"
    shutil.copytree(NOTEBOOK.parent, root / "notebooks")
    shutil.copy(NOTEBOOK.parents[1] / "GLOSSARY.md", root)  # the lesson links to it
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={root}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{address}/api", timeout=1).close()
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"JupyterLab did not start: {(tmp_path / 'lab.log').read_text()[-2000:]}")
        yield address, root / "notebooks"
    finally:
        server.terminate()
        server.wait(20)


def ask(lab, path: str, method: str = "GET", **headers: str) -> int:
    """The status of a request to JupyterLab."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{lab[0]}{path}", method=method, headers=headers)
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_jupyterlab_and_its_kernels_answer_this_reader_on_this_machine_alone(lab):
    token = {"Authorization": f"token {TOKEN}"}
    assert ask(lab, "/api/contents") == ask(lab, "/api/kernels", "POST") == 403, "whoever has no token"
    assert ask(lab, "/api/contents", Host="a.page.example", **token) == 403, "a page whose name leads to this machine"
    assert ask(lab, "/api/kernels", "POST", **token) == 201
    port = lab[0].rpartition(":")[2]
    (server,) = (
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if f"--port={port}\0" in path.read_text()
    )
    (kernel,) = map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())
    deadline = time.monotonic() + START_S / 1000
    while len(addresses(kernel)) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert addresses(server) and len(addresses(kernel)) >= 5 and outside(server, kernel) == []


def executed(path: Path) -> list[int | None]:
    cells = json.loads(path.read_text())["cells"]
    return [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]


def scroll_to(page, place, down: bool = True) -> None:
    """Scroll through the notebook until the place is on the screen: JupyterLab keeps no cells that nobody sees."""
    page.mouse.move(700, 700)
    deadline = time.monotonic() + RUN_S / 1000
    while not place.is_visible():
        assert time.monotonic() < deadline, f"{place} never came into view"
        page.mouse.wheel(0, 500 if down else -500)
        page.wait_for_timeout(200)
    place.scroll_into_view_if_needed()


def run_all(page, lab, name: str) -> Path:
    """Open a notebook and run all of it, by the menu; the file that JupyterLab saves."""
    address, folder = lab
    page.set_viewport_size({"width": 1200, "height": 1500})
    page.goto(f"{address}/lab/tree/notebooks/{name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=START_S)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=START_S)  # else JupyterLab asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    return folder / name


def test_lesson_00_from_a_readers_chair(lab, page):
    path = run_all(page, lab, NOTEBOOK.name)

    widget = page.locator(".text-view").first
    sentence = widget.locator(".summary")
    scroll_to(page, widget)
    sentence.filter(has_text="Layer 0, first choice: 41 bytes").wait_for()  # JupyterLab draws again what was away
    assert sentence.inner_text().startswith("Layer 0, first choice: 41 bytes")
    before = widget.locator(".chip").all_inner_texts()
    assert len(before) == 41

    widget.get_by_role("textbox", name="Text to read").fill("import torch")
    widget.locator(".chip[data-byte='11']:last-of-type").wait_for(timeout=20_000)
    page.wait_for_function("document.querySelector('.text-view .summary').innerText.includes(': 12 bytes')")
    after = widget.locator(".chip").all_inner_texts()
    assert len(after) == 12 and after != before[:12]
    assert re.search(r"busiest expert \d+ takes \d+ of 12 ", sentence.inner_text())
    one_layer = sentence.inner_text()
    widget.get_by_role("combobox", name="Layer").select_option("3")
    page.wait_for_function("document.querySelector('.text-view .summary').innerText.startsWith('Layer 3,')")
    assert ": 12 bytes" in sentence.inner_text() and sentence.inner_text() != one_layer

    # to its end: every cell ran, in order, none with an error; read from the file that JupyterLab saves
    deadline = time.monotonic() + RUN_S / 1000
    counts = []
    while time.monotonic() < deadline:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        counts = executed(path)
        if counts == list(range(1, len(counts) + 1)):
            break
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", [])]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    figure = page.locator("figure img[alt^='Grid of 4 layers by 41 bytes']").first
    scroll_to(page, figure, down=False)
    assert figure.evaluate("image => image.naturalWidth") > 300


def one_of_each(folder: Path) -> dict[str, str]:
    """Class of a widget: the code that the first lesson with such a widget makes it by."""
    programs = {}
    for path in sorted(folder.glob("*.ipynb")):
        for program in widget_programs(nbformat.read(path, as_version=4)):
            programs.setdefault(program.sentence.split(":")[0], f"{program.source}\n{program.expression}")
    return programs


def test_every_widget_in_jupyterlab(lab, page):
    programs = one_of_each(lab[1])
    assert set(programs) == set(widgets.__all__), "every widget is in a lesson"
    notebook = new_notebook(cells=[new_code_cell(source) for source in programs.values()])
    write(notebook, lab[1] / "widgets.ipynb")
    run_all(page, lab, "widgets.ipynb")
    for number, name in enumerate(programs):
        cell = page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{number}']")
        widget = cell.locator(".jp-OutputArea-output").last
        scroll_to(page, widget.locator("[aria-live]").first)
        # JupyterLab takes off the page what is scrolled away, and draws it anew
        widget.locator(SAID).filter(has_text=re.compile(r"\S")).first.wait_for(state="attached")
        change_by_keyboard(page, widget)
        change_by_mouse(page, widget, name)
