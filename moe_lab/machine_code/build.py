"""Every kernel, configuration and target, compiled by a few processes."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from moe_lab.checks import check_whole
from moe_lab.machine_code.pool import LIMIT_S, Pool
from moe_lab.machine_code.rows import Row
from moe_lab.machine_code.targets import check_targets, targets_of

MOST_WORKERS = 8  # unless more are asked for: each holds torch and a compiler in memory


@dataclass(frozen=True)
class Job:
    """One kernel file, launched in one way, in one configuration for one target."""

    kernel: str
    variant: str | None
    config: str | None
    target: str

    @property
    def label(self) -> str:
        """What rows call the kernel: ``grouped_gemm``, or ``grouped_gemm:transposed``."""
        return self.kernel if self.variant is None else f"{self.kernel}:{self.variant}"


def compile_kernels(
    kernels: Sequence[str] = (),
    targets: Sequence[str] = (),
    config: str | None = None,
    *,
    folder: Path | None = None,
    workers: int | None = None,
    limit_s: float | int = LIMIT_S,
) -> tuple[str, list[Row]]:
    """(version of Triton, rows): kernels by name, for targets, in one configuration; all of each that is left out.

    A file that launches several kernels has a row for each, named ``file/kernel``; one with `VARIANTS`, other ways
    to launch it, has rows for each of them, named ``file:variant``. A row that failed says why in ``error``: the
    compiler's message, a crash, or no answer within ``limit_s``. ``folder`` is another folder of kernel files than the
    project's own; they may import its helpers (``from ._launch import ...``).

    Example:
        >>> triton, rows = compile_kernels(["grouped_gemm"], ["sm_80"], "ampere", workers=1)
        >>> rows[0].name, rows[0].ok, rows[0].spill_bytes, list(rows[0].matrix_ops)
        ('grouped_gemm ampere sm_80', True, 0, ['mma'])

    Raises ValueError for an unknown kernel, target or configuration; ImportError where there is no Triton.
    """
    targets = check_targets(targets)
    workers = min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else check_whole("workers", workers, 1)
    with Pool(workers, folder, limit_s) as pool, tqdm(desc="compile", unit="job") as bar:
        (about,) = _must(pool.ask(do="kernels"))
        names = _check_kernels(kernels, about["kernels"], folder)
        rows, known = _read_ways(names, pool.ask_all({"do": "ways", "kernel": name} for name in names))
        jobs = select_jobs(known, targets, config)
        bar.reset(total=len(jobs))
        found = pool.ask_all({"do": "compile", **vars(job)} for job in jobs)
        for job, (answers, failed) in zip(jobs, found, strict=True):
            rows += read_answers(job, answers, failed)
            bar.update()
    return about["triton"], rows


def select_jobs(
    known: dict[str, dict[str, list[str | None]]], targets: Iterable[str], config: str | None = None
) -> list[Job]:
    """Each kernel's configurations on the targets that they are meant for, launched in each of its ways.

    float32 is for the plain way alone: it is there to check results, and its tiles are small.

    Example:
        >>> ways = {"configs": ["interpreter", "ampere", "float32"], "variants": [None, "transposed"]}
        >>> [(job.label, job.config) for job in select_jobs({"dot": ways}, ["sm_80"])]
        [('dot', 'ampere'), ('dot', 'float32'), ('dot:transposed', 'ampere')]

    Raises ValueError for a configuration that no kernel has, or that is meant for none of the targets.
    """
    targets = list(targets)
    names = [name for ways in known.values() for name in ways["configs"] if name is not None]
    if config is not None and known and config not in names:
        allowed = f"one of {', '.join(dict.fromkeys(names))}" if names else "left out, since these kernels have none"
        raise ValueError(f"config must be {allowed}; got {config!r}")
    jobs = [
        Job(kernel, variant, name, target)
        for kernel, ways in known.items()
        for variant in ways["variants"]
        for name in ways["configs"]
        if config is None or name == config
        if variant is None or name != "float32"
        for target in targets
        if target in targets_of(name)
    ]
    if known and not jobs:
        wanted = f"config {config!r}" if config else "what these kernels have"
        raise ValueError(f"nothing to compile: {wanted} is meant for none of {', '.join(targets)}")
    return jobs


def read_answers(job: Job, answers: Sequence[dict], failed: str | None) -> list[Row]:
    """The rows of one job: one a launch; a failure belongs to the launch that it interrupted, or to the whole file."""
    launched = [answer["launch"] for answer in answers if "launch" in answer]
    found = [answer["row"] for answer in answers if "row" in answer]
    if failed:
        found.append({"ok": False, "error": failed})
    names = launched + [""] * (len(found) - len(launched))
    several = len(names) > 1
    rows, seen = [], {}
    for name, row in zip(names, found, strict=True):
        seen[name] = seen.get(name, 0) + 1
        again = f"#{seen[name]}" if seen[name] > 1 else ""  # the same kernel with other constants
        whole = f"{job.label}/{name}{again}" if several and name else job.label
        rows.append(Row(whole, job.config, job.target, **row))
    return rows


def _must(answered: tuple[list[dict], str | None]) -> list[dict]:
    answers, failed = answered
    if failed:
        raise ValueError(f"the kernels cannot be listed: {failed}")
    return answers


def _read_ways(names: Sequence[str], files: Iterable[tuple[list[dict], str | None]]) -> tuple[list[Row], dict]:
    """(a row for each file that cannot be imported, how the others can be launched)."""
    rows, known = [], {}
    for name, (answers, failed) in zip(names, files, strict=True):
        if failed:
            rows.append(Row(name, None, None, False, error=failed))
        else:
            (known[name],) = answers
    return rows, known


def _check_kernels(wanted: Sequence[str], known: Sequence[str], folder: Path | None) -> list[str]:
    if not known:
        raise ValueError(f"there are no kernel files in {folder}")
    for name in wanted:
        if name not in known:
            raise ValueError(f"kernel must be one of {', '.join(known)}; got {name!r}")
    return [name for name in known if not wanted or name in wanted]
