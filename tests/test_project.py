"""The project's own shape: imports point one way, one set of packages everywhere, data with a pedigree."""

import ast
import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "moe_lab"

# A module may import from the rows above its own, and from its own row where that is its own package.
LAYERS = [
    {"paths", "folders", "writing"},
    {"checks", "activations", "doctor", "checkpoint", "figures", "wide", "kernels", "ranks", "lesson_rules"},
    {"sharded", "types", "config", "corpus", "models", "tracing", "cache", "machine_code"},
    {"accounting", "schedule"},
    {"operators"},
    {"routers", "balance", "experts"},
    {"inputs", "balancers", "losses", "certificate", "dispatch"},
    {"layers"},
    {"lm", "profiling"},
    {"train", "roofline"},
    {"parallel", "clinic", "specialisation"},
    {"capstone"},
    {"plots"},
    {"hf"},
    {"bench", "exercises"},
    {"experiments"},
    {"scoreboard"},
    {"lesson", "widgets", "notebooks"},
    {"site"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ([f"moe_lab.{a.name}" for a in node.names] if node.module == "moe_lab" else [node.module])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = room(path)
    assert here in LEVEL, f"give {here} a place in LAYERS"
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "moe_lab" and len(parts) > 1 and parts[1] != here:
            assert LEVEL[parts[1]] < LEVEL[here], f"{here} imports {parts[1]}"


def test_kernels_import_nothing_of_ours_and_hide_nobody():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not [module for module in imported(path) if module.split(".")[0] == "moe_lab"], path.name
    # Hugging Face's package is also imported as `kernels`; with this file ours would hide it from transformers.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_import_needs_neither_triton_nor_transformers(fresh):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('triton', 'transformers', 'anywidget')))  # None: the import fails\n"
        "import moe_lab\n"
        "assert moe_lab.MoE(4, 4, 2, 1) is not None\n"
        "assert moe_lab.count('mixtral-8x7b').total_params\n"
    )
    fresh.run(code, check=True)


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return project, {requirement.name: requirement for requirement in map(Requirement, rows)}


def test_environment_yml_is_the_same_set():
    project, wanted = declared()
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [row for row in environment["dependencies"] if isinstance(row, str)]
    (pip,) = (row["pip"] for row in environment["dependencies"] if isinstance(row, dict))
    found = {requirement.name: requirement for requirement in map(Requirement, [*conda, *pip[:-1]])}
    assert pip[-1] == "-e ."
    assert found.pop("python").specifier == project["requires-python"]
    for tool in ("make", "pip"):
        found.pop(tool)
    found["torch"] = found.pop("pytorch")  # its name on conda-forge
    assert {name: str(r.specifier) for name, r in found.items()} == {n: str(r.specifier) for n, r in wanted.items()}
    assert found["triton"].marker == wanted["triton"].marker


def test_lock_pins_every_dependency_within_its_range():
    _, wanted = declared()
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "torch.lock").read_text()
    rows = [Requirement(row.removesuffix(" \\")) for row in text.splitlines() if row[:1].isalnum()]
    pinned = {row.name.lower().replace("_", "-"): row for row in rows}
    for name, requirement in wanted.items():
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), name
    assert str(pinned["torch"].specifier) == "==2.13.0"
    assert str(pinned["triton"].specifier) == "==3.7.1" and pinned["triton"].marker is not None


def test_data_has_a_pedigree():
    """Every file in data/ has a row in data/README.md with its sha256, and every row a file."""
    rows = re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (ROOT / "data" / "README.md").read_text(), re.M)
    files = [
        path for path in (ROOT / "data").rglob("*") if path.is_file() and path.name not in ("README.md", ".gitkeep")
    ]
    assert {name for name, _ in rows} == {str(path.relative_to(ROOT / "data")) for path in files}
    for name, digest in rows:
        assert hashlib.sha256((ROOT / "data" / name).read_bytes()).hexdigest() == digest, name


def test_make_lists_its_targets():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert {"setup", "lab", "test", "lint", "notebooks"} <= set(targets)
    for target in targets:
        assert re.search(rf"^  make {target} +\S", listed, re.M), target


def test_readme_tree_names_every_module():
    readme = (ROOT / "README.md").read_text()
    for path in sorted(PACKAGE.iterdir()):
        if path.name not in ("__init__.py", "__pycache__") and (path.suffix == ".py" or path.is_dir()):
            assert re.search(rf"^\s*{re.escape(path.name)}/?\s", readme, re.M), f"README's tree lacks {path.name}"
