"""doctor: plain words, a remedy for whatever is missing, and an exit code that means something."""

import json
import subprocess
import sys

import pytest

from moe_lab import doctor
from moe_lab.__main__ import main


def finding(findings, name):
    return next(finding for finding in findings if finding.name == name)


def test_it_finds_what_runs_these_tests():
    findings = doctor.examine()
    assert finding(findings, "python").says.startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert doctor.lessons_run(findings)
    assert doctor.describe(findings).splitlines()[-1] == "Every lesson runs here."


def test_what_is_missing_comes_with_a_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    findings = doctor.examine()
    assert not doctor.lessons_run(findings)
    text = doctor.describe(findings)
    for name in ("torch", "jupyterlab", "transformers", "triton", "browser", "gpu"):
        missing = finding(findings, name)
        assert not missing.found and missing.remedy and missing.remedy in text
    assert "do not run here yet" in text
    assert main(["doctor"]) == 1


def test_the_browser_is_only_good_to_have(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    findings = doctor.examine()
    assert not finding(findings, "browser").found
    assert doctor.lessons_run(findings)


@pytest.mark.parametrize("missing", ["torch", "jaxtyping", "matplotlib", "scipy", "safetensors"])
def test_it_speaks_where_packages_are_missing(missing, fresh):
    """For real: the package cannot be imported, as after a clone without `make`."""
    code = (
        "import sys, runpy, importlib.metadata as m\n"
        f"sys.modules['{missing}'] = None\n"
        "found = m.version\n"
        f"def version(name):\n    if name == '{missing}': raise m.PackageNotFoundError(name)\n    return found(name)\n"
        "m.version = version\n"
        "sys.argv = ['moe_lab', 'doctor']\n"
        "runpy.run_module('moe_lab', run_name='__main__')\n"
    )
    done = fresh.run(code)
    assert done.returncode == 1
    assert done.stderr == ""
    assert f"NO   {missing}" in done.stdout and "make setup" in done.stdout


def test_json_is_json(capsys):
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "found", "needed", "says", "remedy"} == set(rows[0])
    assert "triton" in [row["name"] for row in rows]


def test_installed_command():
    """As a reader types it, warnings and all: nothing on stderr."""
    done = subprocess.run([sys.executable, "-m", "moe_lab", "doctor"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("What this machine can run")


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["train", "--help"], ["notebooks", "--help"]])
def test_help_everywhere(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "usage: moe-lab" in capsys.readouterr().out


def test_errors_name_the_value_and_fail(capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path), "--top-k", "0"]) == 1
    assert capsys.readouterr().err == "moe-lab train: top_k must be in 1..16, got 0\n"
    assert main(["notebooks", "99"]) == 1
    assert "begins with '99'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["fly"])
    assert stopped.value.code == 2
