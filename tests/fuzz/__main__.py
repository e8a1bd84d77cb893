"""What `make fuzz` runs: every fuzz test in full, then atheris on the formats of files; counts, and a verdict.

The seed is drawn, and printed; ``FUZZ_SEED=...`` gives the same cases again (those of atheris as far as its time goes).
Ends with 1 where anything failed, or where fewer than 10,000 cases were tried.
"""

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .cases import FULL, Tally

LEAST = 10_000
HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", f"--hypothesis-profile={FULL}"]
GUIDED = [sys.executable, "-m", "tests.fuzz.guided", "--runs", "1500", "--seconds", "60"]


def main() -> int:
    seed = int(os.environ.get("FUZZ_SEED") or secrets.randbelow(2**31))
    print(f"FUZZ_SEED={seed}", flush=True)
    tally, failed = Tally(), []
    with tempfile.TemporaryDirectory(prefix="moe-lab-fuzz-") as folder:
        counts = Path(folder, "tally.json")
        environment = {**os.environ, "FUZZ_SEED": str(seed), "FUZZ_TALLY": str(counts)}
        if subprocess.run([*PYTEST, str(HERE)], env=environment, cwd=HERE.parents[1]).returncode:
            failed.append("tests, above: each failing example says how to see it again")
        add(tally, counts)
        if importlib.util.find_spec("atheris") is None:
            print("atheris is not here (it has wheels for Linux, Python 3.11 to 3.13): hypothesis alone", flush=True)
        else:
            out = Path(tempfile.mkdtemp(prefix="moe-lab-guided-"))
            command = [*GUIDED, "--seed", str(seed), "--out", str(out)]
            with (out / "log.txt").open("w") as log:
                code = subprocess.run(command, cwd=HERE.parents[1], stdout=log, stderr=log).returncode
            if code:
                print((out / "log.txt").read_text(errors="replace")[-6000:])
                failed.append(f"atheris, above: the inputs are in {out}")
            for path in out.glob("*/tally.json"):
                add(tally, path)
            if not code:
                shutil.rmtree(out)
    if tally.cases < LEAST:
        failed.append(f"{tally.cases:,} cases are fewer than {LEAST:,}")
    print(f"\n{tally.describe()}\n\nFUZZ_SEED={seed}, {tally.cases:,} cases, failures: {len(failed)}")
    print("\n".join(f"  {what}" for what in failed))
    return bool(failed)


def add(tally: Tally, path: Path) -> None:
    if path.is_file():
        tally.add(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
