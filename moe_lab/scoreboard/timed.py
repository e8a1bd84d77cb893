"""Findings from the records of `python -m moe_lab bench`: ratios of times within one run."""

from collections.abc import Callable, Iterable
from pathlib import Path

from moe_lab.bench import Measured
from moe_lab.bench.reading import Record, newest_record, read_record
from moe_lab.scoreboard.facts import Finding

Ratios = dict[str, float]


def align_headline(data: Path) -> Finding | None:
    """Serial over counting kernel on a GPU, 256 experts, as in the article of the claim."""
    return _from_suite(data, "align", "gpu", lambda record: _aligned(record.find(num_experts=256, mode="eager")))


def align_all(data: Path) -> Finding | None:
    """The same for every number of experts that the suite times."""
    return _from_suite(data, "align", "gpu", lambda record: _aligned(record.find(mode="eager")))


def column_major(data: Path) -> Finding | None:
    """Grouped over column-major order on a GPU: Mixtral's first product, 512 tokens."""
    sizes = {"tokens": 512, "d_in": 4096, "d_out": 28672}
    return _from_suite(
        data, "order", "gpu", lambda record: ratios_of(record.find(**sizes), "grouped by 8", "column-major")
    )


def loop_on_gpu(data: Path) -> Finding | None:
    """A Python loop over the experts, over the kernels, on a GPU."""
    return _from_suite(
        data, "layer", "gpu", lambda record: ratios_of(record.rows, "moe_lab loop", "moe_lab triton (save=fast)")
    )


def loop_on_cpu(data: Path) -> Finding | None:
    """The same idea on a CPU: the loop over experts, over grouped products."""
    about = "on a CPU: the loop over experts, over grouped products"
    return _from_suite(
        data, "cpu", "cpu", lambda record: ratios_of(_float32(record), "moe_lab loop", "moe_lab grouped"), about
    )


def dense_on_cpu(data: Path) -> Finding | None:
    """The dense layer of equal FLOPs over the MoE layer, on a CPU, in float32."""
    return _from_suite(
        data, "cpu", "cpu", lambda record: ratios_of(_float32(record), "dense, equal FLOPs", "moe_lab grouped")
    )


def carrying(data: Path) -> Finding | None:
    """Dispatch and combine by one-hot einsums over those by a table, on a GPU, or else on a CPU."""

    def ratios(record: Record) -> Ratios:
        return ratios_of(record.rows, "one_hot", "table")

    return _from_suite(data, "dispatch", "gpu", ratios) or _from_suite(data, "dispatch", "cpu", ratios)


def share_of_balancing(data: Path) -> Finding | None:
    """Time of exact balance, warm, as a share of the time of the experts that it routes for."""

    def shares(record: Record) -> Ratios:
        rows = [row for row in record.rows if "d_expert" in row.shape]
        return {name: 1 / ratio for name, ratio in ratios_of(rows, "expert_mlp, grouped", "balanced, warm").items()}

    found = _from_suite(data, "routers", "cpu", shares, "time of balancing over the experts' on the same tokens")
    return found and Finding(**{**vars(found), "unit": "%", "digits": 1})


def ratios_of(rows: Iterable[Measured], slow: str, fast: str) -> Ratios:
    """Task -> time of one implementation over another's, where one run timed both.

    Example:
        >>> task = {"direction": "forward", "shape": {"tokens": 8}, "dtype": "float32"}
        >>> rows = [Measured(name, **task, ms_p50=ms) for name, ms in (("a", 6.0), ("b", 2.0))]
        >>> ratios_of(rows, "a", "b"), ratios_of(rows, "a", "c")
        ({'tokens 8, forward': 3.0}, {})
    """
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.ms_p50 is not None:
            times.setdefault(_task(row), {})[row.implementation] = row.ms_p50
    return {task: found[slow] / found[fast] for task, found in times.items() if slow in found and fast in found}


def _aligned(rows: list[Measured]) -> Ratios:
    return ratios_of(rows, "align_serial", "sort_tokens")


def _float32(record: Record) -> list[Measured]:
    return record.find(dtype="float32")  # no rival of a machine without bfloat16 is fast in it


def _task(row: Measured) -> str:
    sizes = [f"{name} {value:,}" for name, value in row.shape.items()]
    return ", ".join([*sizes, row.direction, *(["CUDA graph"] if row.mode == "graph" else [])])


def _from_suite(
    data: Path, suite: str, kind: str, ratios: Callable[[Record], Ratios], about: str = ""
) -> Finding | None:
    """The newest record of a suite as a finding; None without one, or where it timed nothing of the kind."""
    folder = data / "benchmarks"
    record = newest_record(suite, kind, folder)
    values = ratios(record) if record is not None else {}
    if not values:
        return None
    path = next(path for path in sorted(folder.glob(f"{suite}-*.json")) if read_record(path).about == record.about)
    said = record.about
    device = said["device"] if said["driver"] else f"{said['device']}, {said['threads']} threads"
    files, date = (str(path.relative_to(data)),), said["started"][:10]
    return Finding("measured", values, about=about, files=files, device=device, date=date, commit=said["commit"])
