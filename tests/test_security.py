"""What SECURITY.md promises: hashes, no network, no pickle, and paths that are refused before they do harm."""

import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import moe_lab as ml
from moe_lab.__main__ import main
from moe_lab.capstone import read_design, write_design
from moe_lab.capstone.examples import laptop_design
from moe_lab.checkpoint import publish_folder, read_json, start_over
from moe_lab.experiments import balance, recorded
from moe_lab.hf.checkpoints import SAFELY
from moe_lab.machine_code.record import read_record, write_record
from moe_lab.machine_code.rows import Row
from moe_lab.paths import JSON_BYTES
from moe_lab.profiling.trace import ABOUT, Trace

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "moe_lab").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])
WITHOUT = ROOT / ".ci" / "without"
DIARY = "Dear diary,\n"


def requirements():
    """The lock's rows: a requirement, and its hashes."""
    for block in re.split(r"\n(?=[a-zA-Z])", (ROOT / "requirements.lock").read_text()):
        head, *hashes = block.split(" \\\n")
        if not head.startswith("#"):
            yield Requirement(head), [line.strip() for line in hashes]


def test_every_package_of_the_lock_has_its_hashes():
    rows = list(requirements())
    assert len(rows) > 100
    for requirement, hashes in rows:
        (pin,) = requirement.specifier
        assert pin.operator == "==" and requirement.url is None, requirement
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_what_builds_the_package_is_pinned_too():
    wanted = Requirement(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"][0])
    (pin,) = next(row for row, _ in requirements() if row.name == wanted.name).specifier
    assert wanted.specifier.contains(pin.version)


def test_set_up_takes_nothing_but_torch_without_a_hash():
    recipe = re.search(r"^\$\(READY\):.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)[0]
    assert re.findall(r"^\t\$\(INSTALL\) (.*)$", recipe, re.M) == [
        "--require-hashes --no-deps --requirement requirements.lock",
        "--requirement torch.lock",
        "--no-deps --no-build-isolation --editable .",
    ]
    torch_alone = [line for line in (ROOT / "torch.lock").read_text().splitlines() if not line.startswith("#")]
    assert [Requirement(line).name for line in torch_alone] == ["torch"]


def test_the_lab_opens_for_this_machine_alone():
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "jupyter lab" in said and "--ip=127.0.0.1" in said
    assert "NeverCheckForUpdate" in said and "extension_manager=readonly" in said, "no questions to other machines"
    assert "--ServerApp.token" not in said and "password" not in said, "Jupyter's own token stays"


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("socket.create_connection(('192.0.2.1', 80), 1)", "192.0.2.1"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))", "192.0.2.1"),
        ("socket.getaddrinfo('example.org', 80)", "example.org"),
        ("socket.create_server(('', 0))", "socket.bind"),
        ("socket.create_server(('::', 0), family=socket.AF_INET6)", "socket.bind"),
        ("socket.create_server(('127.0.0.1', 0)); socket.socketpair()", None),
    ],
)
def test_the_tests_themselves_have_no_network(code, refused):
    """`make test` gives this path to every process; so all tests and lessons pass without a network."""
    assert "test: export PYTHONPATH = $(CURDIR)/.ci/without" in (ROOT / "Makefile").read_text()
    command = [sys.executable, "-c", f"import socket; {code}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(WITHOUT)}, capture_output=True, text=True)
    assert (done.returncode == 0) == (refused is None)
    assert refused is None or re.search(rf"NoNetworkHere: .*{re.escape(refused)}", done.stderr)


def test_what_runs_code_stands_nowhere():
    """What ruff's rules of security do not know; those they know are on, and each exception says why."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not [path for path, rules in lint["per-file-ignores"].items() if "S" in rules and "moe_lab" in path]
    allowed = {"S102": 1, "S307": 1, "S301": 2, "S603": 3, "S101": 1}
    found = [rule for path in SOURCES for rule in re.findall(r"# noqa: (S\d+)", path.read_text())]
    assert {rule: found.count(rule) for rule in found} == allowed
    for path in SOURCES:
        for found in re.findall(
            r"\btorch\.load\(|\btorch\.hub\b|trust_remote_code=(?!False)|allow_pickle", path.read_text()
        ):
            pytest.fail(f"{path} has {found}")
    assert SAFELY == dict(local_files_only=True, trust_remote_code=False)


# --- paths that a reader names ------------------------------------------------------------------------------------


def make_pipe(path):
    os.mkfifo(path)


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(JSON_BYTES + 1)  # a hole: no bytes on the disk


HOSTILE_INPUTS = {
    "nothing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": make_pipe,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "huge": make_huge,
    "deep": lambda path: path.write_text("[" * 100_000),
    "long number": lambda path: path.write_text('{"a": ' + "1" * 10_000 + "}"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "diary": lambda path: path.write_text(DIARY),
}
READERS = {
    "count": "count {}",
    "grade": "grade {} --brief laptop",
    "compile": "compile combine --target sm_90 --against {}",
    "scoreboard": "scoreboard --write {}",
}
NAMES = [
    "a.json",
    "two words.json",
    "two\nlines.json",
    "\x1b[2J.json",
    os.fsdecode(b"caf\xe9.json"),
    "-.json",
    "..json",
]


def refused(capsys, command, *arguments):
    """Run a command that must refuse; what it said, which no terminal obeys."""
    assert main([*command.split(), *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"moe-lab {command.split()[0]}: ") and "Traceback" not in err
    assert all(c.isprintable() or c == "\n" for c in err), err
    return err


def run_on(capsys, command, path):
    before, _, after = command.partition(" {}")
    return refused(capsys, before, path, *after.split())


@pytest.mark.parametrize("kind", HOSTILE_INPUTS)
@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
def test_files_to_read(command, kind, tmp_path, capsys):
    path = tmp_path / "a.json"
    HOSTILE_INPUTS[kind](path)
    said = run_on(capsys, command, path)
    assert str(path) in said
    assert kind != "huge" or f"must have at most {JSON_BYTES} bytes, it has {JSON_BYTES + 1}" in said
    if kind == "diary":
        assert path.read_text() == DIARY


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
def test_names_of_files_to_read(command, name, tmp_path, capsys):
    path = tmp_path / name
    path.write_text(DIARY)
    run_on(capsys, command, path)
    run_on(capsys, command, tmp_path / "below" / ".." / name)


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("grade {} --brief laptop", "DESIGN"),
        ("compile --against {}", "--against"),
        ("scoreboard --write {}", "--write"),
    ],
)
def test_the_argument_is_named(command, argument, tmp_path, capsys):
    assert f": {argument}: there is no file {tmp_path}/a.json\n" in run_on(capsys, command, tmp_path / "a.json")
    assert f": {argument}: there is no file /dev/zero, it is a device or a pipe\n" in run_on(
        capsys, command, "/dev/zero"
    )


@pytest.mark.parametrize("kind", ["nothing", "pipe", "device", "diary"])
@pytest.mark.parametrize("command", ["export {new} --model {path}", "scoreboard --data {path}"])
def test_folders_to_read(command, kind, tmp_path, capsys):
    path, new = tmp_path / "a.json", tmp_path / "new"
    HOSTILE_INPUTS[kind](path)
    word, *others = command.format(path=path, new=new).split()
    assert str(path) in refused(capsys, word, *others)
    assert not new.exists()


WRITERS = {
    "compile": "compile --record {}",
    "profile": "profile --backend loop --shape 8,8,8,2,1 --out {}",
    "balance": "experiment balance --out {}.runs --record {}",
    "dense_vs_moe": "experiment dense_vs_moe --quick --out {}.runs --record {}",
    "site": "site --out {}",
    "export": "export {}",
    "train": "train --steps 1 --out {}.run --export {}",
}


@pytest.mark.parametrize("kind", ["diary", "pipe", "device", "folder with a diary", "below a file"])
@pytest.mark.parametrize("command", WRITERS)
def test_what_this_lab_did_not_write_stays(command, kind, tmp_path, capsys):
    path = tmp_path / "a.json"
    if kind == "folder with a diary":
        path.mkdir()
        (path / "diary").write_text(DIARY)
    elif kind == "below a file":
        path.write_text(DIARY)
        path /= "b.json"
    else:
        HOSTILE_INPUTS[kind](path)
    there = sorted(map(str, tmp_path.rglob("*")))
    words = [word.replace("{}", str(path)) for word in WRITERS[command].split()]
    said = refused(capsys, words[0], *words[1:])
    assert str(tmp_path / "a.json") in said
    if kind == "diary" and command in ("compile", "profile"):  # before the work, and not after it
        assert f": {words[-2]} must be new or written by this lab" in said
    assert [name for name in there if not os.path.lexists(name)] == []
    assert all(one.read_text() == DIARY for one in (tmp_path / "a.json", path / "diary") if one.is_file())
    if kind == "device":
        assert (tmp_path / "a.json").is_symlink()


@functools.cache
def recording():
    model = ml.MoE(8, 16, num_experts=4, top_k=2)
    with ml.hf.watch(model) as seen:
        model(torch.randn(5, 8))
    return seen


WRITES = {
    "trace.json": Trace(dict.fromkeys(ABOUT, "?") | dict(kind="cpu", shape={}, versions={}), []).write,
    "design.json": lambda path: write_design(laptop_design(), path),
    "watch.json": lambda path: recording().save(path),
    "watch.parquet": lambda path: recording().save(path),
    "report.html": lambda path: recording().report(path),
    "record.json": lambda path: write_record(path, "3.7.1", [Row("dot", None, "sm_90", True)]),
}
READS = {
    "trace.json": Trace.read,
    "design.json": read_design,
    "watch.json": ml.hf.load_watch,
    "watch.parquet": ml.hf.load_watch,
    "record.json": read_record,
}


@pytest.mark.parametrize("name", WRITES)
def test_functions_write_over_their_own_alone(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"")
    for _ in range(2):
        WRITES[name](path)
        assert path.stat().st_size > 100
    path.write_text(DIARY)
    with pytest.raises(ValueError, match=rf"path must be new or written by this lab, and .*{name} is neither"):
        WRITES[name](path)
    assert path.read_text() == DIARY


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("kind", ["nothing", "folder", "pipe", "device"])
def test_functions_wait_for_no_pipe(name, kind, tmp_path):
    path = tmp_path / name
    HOSTILE_INPUTS[kind](path)
    with pytest.raises(FileNotFoundError, match=rf"there is no file .*{name}"):
        READS[name](path)


def test_progress_that_is_a_pipe_or_huge_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_LAB_PROGRESS", str(tmp_path / "progress.json"))
    for make in (make_pipe, make_huge):
        make(tmp_path / "progress.json")
        assert ml.progress() == {}
        (tmp_path / "progress.json").unlink()


def test_records_of_both_experiments_begin_as_new_ones_must():
    for module in (balance, recorded):
        assert module.RECORD.read_text().startswith(module.BEGINS)


def test_folders_with_a_readers_files_are_neither_replaced_nor_deleted(tmp_path):
    write = lambda folder: (folder / "config.json").write_text("{}")  # noqa: E731
    for name in ("step-000001", "step-000002"):
        publish_folder(tmp_path, name, write)
    (tmp_path / "step-000001" / "notes.txt").write_text(DIARY)
    for harm in (lambda: start_over(tmp_path), lambda: publish_folder(tmp_path, "step-000001", write)):
        with pytest.raises(ValueError, match=r"step-000001 holds notes.txt, and no checkpoint does"):
            harm()
    assert (tmp_path / "step-000001" / "notes.txt").read_text() == DIARY
    (tmp_path / "step-000001" / "notes.txt").unlink()
    (tmp_path / "step-000001" / "config.json").unlink()
    (tmp_path / "step-000001" / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"step-000001 holds config.json"):
        start_over(tmp_path)


def test_a_link_to_an_export_stays_a_link_and_one_within_is_not_followed(tmp_path):
    home, link = tmp_path / "home", tmp_path / "link"
    model = ml.LanguageModel(ml.config.LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, num_experts=4))
    ml.hf.export(model, home)
    link.symlink_to(home)
    ml.hf.export(model, link)
    assert link.is_symlink() and read_json(home / "config.json")["model_type"]
    (tmp_path / "diary").write_text(DIARY)
    (home / "model.safetensors").unlink()
    (home / "model.safetensors").symlink_to(tmp_path / "diary")
    with pytest.raises(ValueError, match=r"holds model.safetensors, and no checkpoint does"):
        ml.hf.export(model, home)
    assert (tmp_path / "diary").read_text() == DIARY


def test_a_site_with_other_files_is_not_replaced(tmp_path, capsys):
    (tmp_path / "index.html").write_text("built by moe-lab")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("[core]")
    assert "holds .git/config besides" in refused(capsys, "site", "--out", tmp_path)
    assert (tmp_path / ".git" / "config").read_text() == "[core]"


def test_the_page_names_what_is_there():
    named = set(
        re.findall(
            r"`((?:moe_lab|tests|kernels|data|\.ci)/[\w./-]+|[\w-]+\.(?:lock|yml))`", (ROOT / "SECURITY.md").read_text()
        )
    )
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
