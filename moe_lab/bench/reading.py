"""Records read back: the newest of a suite, its rows, and where it comes from in one line."""

from dataclasses import dataclass
from pathlib import Path

from moe_lab.bench.rows import Measured
from moe_lab.checkpoint import read_json
from moe_lab.checks import check_fits
from moe_lab.roofline import RECORDS

ABOUT = {
    "device": str,
    "driver": str | None,
    "threads": int,
    "started": str,
    "commit": str,
    "versions": dict[str, str | None],
}
"""What every record says of its run, and of which kind; more is welcome."""


@dataclass(frozen=True)
class Record:
    """One run of a suite: ``about`` it, and its rows."""

    about: dict
    rows: list[Measured]

    @property
    def provenance(self) -> str:
        """Device, date, commit and versions: what every figure prints."""
        about = self.about
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        threads = "" if about["driver"] else f", {about['threads']} threads"
        return f"{about['device']}{threads}, {about['started'][:10]}, commit {about['commit'][:9]}, {versions}"

    def find(self, **values: object) -> list[Measured]:
        """The rows that have these values, such as ``direction="forward", dtype="float32"``; ``tokens=`` is a size."""
        return [row for row in self.rows if all(_value(row, name) == value for name, value in values.items())]


def read_record(path: Path) -> Record:
    """Read one record.

    Raises FileNotFoundError, or ValueError for a file that is no record.
    """
    values = read_json(path)
    if not isinstance(values.get("run"), dict) or not isinstance(values.get("rows"), list):
        raise ValueError(f"{path} must hold a run and its rows, it holds {', '.join(values) or 'nothing'}")
    try:
        rows = [Measured.from_dict(row) for row in values["rows"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} has a row that is none ({error})") from error
    try:
        for name, kind in ABOUT.items():
            check_fits(f"run.{name}", values["run"][name], kind)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} says too little of its run ({type(error).__name__}: {error})") from error
    return Record(values["run"], rows)


def newest_record(suite: str, device: str | None = None, folder: Path = RECORDS) -> Record | None:
    """The newest record of a suite, of one kind of device if ``device`` says so ("cpu", "gpu"); None if there is none.

    Example:
        >>> newest_record("routers").about["suite"], newest_record("no such suite")
        ('routers', None)
    """
    records = [read_record(path) for path in sorted(folder.glob(f"{suite}-*.json"))]
    kinds = {"cpu": lambda record: record.about["driver"] is None, "gpu": lambda record: record.about["driver"]}
    if device is not None and device not in kinds:
        raise ValueError(f"device must be one of {', '.join(kinds)}, or None; got {device!r}")
    fitting = [record for record in records if device is None or kinds[device](record)]
    return max(fitting, key=lambda record: record.about["started"], default=None)


def _value(row: Measured, name: str) -> object:
    return row.shape[name] if name in row.shape else getattr(row, name)
