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


@dataclass(frozen=True)
class Job:
    """One kernel file in one configuration for one target."""

    kernel: str
    config: str | None
    target: str


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

    A file that launches several kernels has a row for each, named ``file/kernel``. A row that failed says why in
    ``error``: the compiler's message, a crash, or no answer within ``limit_s``. ``folder`` is another folder of kernel
    files than the project's own; they may import its helpers (``from ._launch import ...``).

    Example:
        >>> triton, rows = compile_kernels(["grouped_gemm"], ["sm_80"], "ampere", workers=1)
        >>> rows[0].name, rows[0].ok, rows[0].spill_bytes, list(rows[0].matrix_ops)
        ('grouped_gemm ampere sm_80', True, 0, ['mma'])

    Raises ValueError for an unknown kernel, target or configuration; ImportError where there is no Triton.
    """
    targets = check_targets(targets)
    workers = (os.cpu_count() or 1) if workers is None else check_whole("workers", workers, 1)
    with Pool(workers, folder, limit_s) as pool:
        (about,) = _must(pool.ask(do="kernels"))
        names = _check_kernels(kernels, about["kernels"])
        files = pool.ask_all({"do": "configs", "kernel": name} for name in names)
        rows, known = [], {}
        for name, (answers, failed) in zip(names, files, strict=True):
            if failed:
                rows.append(Row(name, None, None, False, error=failed))
                continue
            known[name] = answers[0]["configs"]
        jobs = select_jobs(known, targets, config)
        found = pool.ask_all({"do": "compile", **vars(job)} for job in jobs)
        bar = tqdm(zip(jobs, found, strict=True), total=len(jobs), desc="compile", unit="job")
        for job, (answers, failed) in bar:
            rows += read_answers(job, answers, failed)
    return about["triton"], rows


def select_jobs(configs: dict[str, list[str | None]], targets: Iterable[str], config: str | None = None) -> list[Job]:
    """Each kernel's configurations on the targets that they are meant for.

    Example:
        >>> [vars(job) for job in select_jobs({"dot": ["interpreter", "ampere"], "add": [None]}, ["sm_80", "sm_90"])][0]
        {'kernel': 'dot', 'config': 'ampere', 'target': 'sm_80'}

    Raises ValueError for a configuration that no kernel has, or that is meant for none of the targets.
    """
    targets = list(targets)
    names = [name for names in configs.values() for name in names if name is not None]
    if config is not None and configs and config not in names:
        raise ValueError(f"config must be one of {', '.join(dict.fromkeys(names)) or 'none at all'}; got {config!r}")
    jobs = [
        Job(kernel, name, target)
        for kernel, names in configs.items()
        for name in names
        if config is None or name == config
        for target in targets
        if target in targets_of(name)
    ]
    if configs and not jobs:
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
        whole = f"{job.kernel}/{name}{again}" if several and name else job.kernel
        rows.append(Row(whole, job.config, job.target, **row))
    return rows


def _must(answered: tuple[list[dict], str | None]) -> list[dict]:
    answers, failed = answered
    if failed:
        raise ValueError(f"the kernels cannot be listed: {failed}")
    return answers


def _check_kernels(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in known:
            raise ValueError(f"kernel must be one of {', '.join(known)}; got {name!r}")
    return [name for name in known if not wanted or name in wanted]
