"""Findings from the records of training runs: Switch's three ratios, drops, and exact balance with its price."""

import statistics
from collections.abc import Callable
from pathlib import Path

from moe_lab.checkpoint import read_json
from moe_lab.experiments.recorded import architecture_table, race_ratios, read_record
from moe_lab.scoreboard.facts import Finding, Reading

DENSE_VS_MOE = "training/dense_vs_moe.json"
BALANCE = "training/balance.json"
EXACT = ("balanced", "balanced_causal")
RULES = {"own": "as trained", "prices": "with its prices, token by token", "top_k": "by plain top-k, token by token"}


def race_ratio(name: str) -> Reading:
    """One of the three ratios of the race, ``steps``, ``seconds`` or ``examples``, a value a seed."""

    def read(data: Path) -> Finding | None:
        return _from_record(
            data,
            DENSE_VS_MOE,
            lambda record: {f"seed {seed}": getattr(one, name) for seed, one in race_ratios(record).items()},
            about="in miniature: 64 experts against a dense model of equal FLOPs a step",
        )

    return read


def dropped(data: Path) -> Finding | None:
    """Dropped assignments of Switch layers at three capacity factors, the worst seed and layer."""

    def shares(record: dict) -> dict[str, float]:
        rows = [row for row in architecture_table(record) if row["name"].startswith("Switch, ") and row["losses"]]
        return {row["name"].removeprefix("Switch, "): max(row["dropped"]) for row in rows}

    return _from_record(data, DENSE_VS_MOE, shares, unit="%", digits=1, about="dropped, 16 experts, in miniature")


def evenness(data: Path) -> Finding | None:
    """cv of the loads of two routers that are exactly even, by how the trained model is run; the worst seed."""

    def spreads(record: dict) -> dict[str, float]:
        found: dict[str, float] = {}
        for run in record["runs"]:
            for rule in RULES if run["name"] in EXACT else ():
                name = f"{run['label']}, {RULES[rule]}"
                if rule in run["judged"]:
                    found[name] = max(found.get(name, 0.0), run["judged"][rule]["cv"])
        return found

    about = "cv, which is 0 where the variance is 0, of two exact routers"
    return _from_record(data, BALANCE, spreads, unit="", about=about)


def price(data: Path) -> Finding | None:
    """Held-out loss of the exact routers, as trained, above that of no balancing; means over the seeds."""

    def more(record: dict) -> dict[str, float]:
        losses: dict[str, list[float]] = {}
        for run in record["runs"]:
            losses.setdefault(run["name"], []).append(run["judged"]["own"]["loss"])
        base = statistics.fmean(losses["none"])
        return {name: statistics.fmean(losses[name]) - base for name in EXACT}

    return _from_record(data, BALANCE, more, unit="nats a byte", about="loss above that without balancing")


def _from_record(
    data: Path, name: str, values: Callable[[dict], dict[str, float]], **about: str | int
) -> Finding | None:
    if not (data / name).is_file():
        return None
    record = read_record(data / name) if name == DENSE_VS_MOE else read_json(data / name)
    machine = record["machine"]
    device, date = f"{machine['processor']}, {machine['cores']} cores", record.get("date", "")
    return Finding("measured", values(record), files=(name,), device=device, date=date, **about)
