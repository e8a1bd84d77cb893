"""Figures of dense and MoE models in training: the race, its curves, loss over experts, and loss over parameters."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from moe_lab.plots.even_routing import LINES
from moe_lab.plots.style import MARKERS, colour, finish, new_figure

Runs = Sequence[tuple[int, float]]
"""(steps, last loss) of whole runs of one arm, the shortest first."""

Crossings = Mapping[int, tuple[float, str]]
"""Seed -> steps after which the MoE has the dense run's last loss, and their bound, as `steps_to_loss` gives them."""

DENSE, MOE = 0, 1  # numbers of their colours, markers and lines
BOUNDS = {"": "", "<=": "at least ", ">": "less than "}
"""Bound of the steps that are needed -> what it makes of the ratio."""
NATS = "held-out loss, nats a byte"


def draw_race(arms: Mapping[int, Mapping[str, Runs]], crossings: Crossings, provenance: str = "") -> Figure:
    """Draw the last loss of every whole run over its steps, logarithmic: a dot a seed, a line through each arm's means.

    ``arms`` holds, by seed, the runs of "dense", of which the longest is raced against, and of "moe". A dotted line
    leads from the end of each dense run to the steps after which the MoE has its loss.

    Example:
        >>> arms = {0: {"dense": [(400, 2.0)], "moe": [(40, 2.5), (100, 1.5)]}}
        >>> draw_race(arms, {0: (63.2, "")}).axes[0].texts[0].get_text()
        'the same loss after\\n6.3 times fewer steps'

    Raises ValueError for no seed, or crossings of other seeds.
    """
    _check_seeds(arms, crossings)
    fig, axes = new_figure(7.4, 3.8)
    for number, arm in ((DENSE, "dense"), (MOE, "moe")):
        runs = [run for seed in arms.values() for run in seed[arm]]
        look = {"color": colour(number), "marker": MARKERS[number], "edgecolors": "black", "zorder": 3, "s": 55}
        axes.scatter(*zip(*runs, strict=True), label={"dense": "dense", "moe": "MoE"}[arm], **look)
        means = [(steps, statistics.fmean(losses)) for steps, losses in _by_steps(runs).items()]
        axes.plot(*zip(*means, strict=True), color=colour(number), linestyle=LINES[number], linewidth=1.4)
    for seed, (steps, _) in crossings.items():
        dense_steps, loss = arms[seed]["dense"][-1]
        axes.plot([dense_steps, steps], [loss, loss], color="black", linestyle=":", linewidth=1.2)
        axes.plot([steps], [loss], color="black", marker="x", markersize=7, zorder=4)
    middle, level = _middle(arms, crossings)
    text = f"the same loss after\n{say_ratio(arms, crossings)} times fewer steps"
    axes.annotate(text, (middle, level), (0, 7), textcoords="offset points", ha="center", va="bottom", fontsize=10)
    _steps_axis(axes, [steps for seed in arms.values() for runs in seed.values() for steps, _ in runs])
    axes.set(xlabel="steps of the whole run", ylabel=NATS)
    fig.legend(loc="outside upper center", ncols=2, frameon=False)
    return _finish(fig, provenance)


def say_race(arms: Mapping[int, Mapping[str, Runs]], crossings: Crossings) -> str:
    """The finding of `draw_race` as a sentence, for its alt text.

    Example:
        >>> arms = {0: {"dense": [(400, 2.0)], "moe": [(40, 2.5), (100, 1.5)]}}
        >>> print(say_race(arms, {0: (63.2, "")}))
        Last held-out loss of whole runs, 1 seed. dense: 2.000 after 400 steps. MoE: 2.500 after 40, 1.500 after 100. \
The MoE has the dense run's last loss after 6.3 times fewer steps.
    """
    _check_seeds(arms, crossings)
    said = []
    for arm, name in (("dense", "dense"), ("moe", "MoE")):
        ends = _by_steps([run for seed in arms.values() for run in seed[arm]])
        words = [f"{say_spread(losses, 3)} after {steps:,}" for steps, losses in ends.items()]
        said.append(f"{name}: {', '.join(words)}{' steps' if arm == 'dense' else ''}.")
    seeds = f"{len(arms)} seed{'s' * (len(arms) > 1)}"
    end = f"The MoE has the dense run's last loss after {say_ratio(arms, crossings)} times fewer steps."
    return " ".join([f"Last held-out loss of whole runs, {seeds}.", *said, end])


def say_ratio(arms: Mapping[int, Mapping[str, Runs]], crossings: Crossings) -> str:
    """Steps of the dense run over those that the MoE needs: mean and range over seeds, or each with its bound.

    Example:
        >>> arms = {seed: {"dense": [(400, 2.0)]} for seed in (0, 1)}
        >>> say_ratio(arms, {0: (100.0, ""), 1: (80.0, "")}), say_ratio(arms, {0: (100.0, ""), 1: (40.0, "<=")})
        ('4.5 (4.0 to 5.0)', '4.0, at least 10.0')
    """
    ratios = [arms[seed]["dense"][-1][0] / steps for seed, (steps, _) in crossings.items()]
    bounds = [BOUNDS[bound] for _, bound in crossings.values()]
    if any(bounds):
        return ", ".join(f"{bound}{ratio:.1f}" for bound, ratio in zip(bounds, ratios, strict=True))
    return say_spread(ratios, 1)


def say_spread(values: Sequence[float | int], digits: int) -> str:
    """Mean, and in brackets lowest and highest, of one number a seed; a single one stands alone.

    Example:
        >>> say_spread([1.0, 2.0, 3.0], 1), say_spread([1.0], 1)
        ('2.0 (1.0 to 3.0)', '1.0')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def draw_curves(runs: Mapping[str, Mapping], loss: float | int, provenance: str = "") -> Figure:
    """Draw the curves of some runs over their steps, logarithmic: training loss as a line, held-out loss as marks.

    ``runs`` are records of runs by name, each with its ``curve`` and ``validation``. The dotted line is at ``loss``;
    black crosses on it show where each run's marks first come down to it.

    Example:
        >>> run = {"curve": [[10, 2.0], [20, 1.0]], "validation": [[10, 2.1], [20, 1.2]]}
        >>> len(draw_curves({"dense": run}, loss=1.5).axes[0].lines)
        4

    Raises ValueError for no run.
    """
    _check_some("runs", runs)
    fig, axes = new_figure(7.4, 3.8)
    for number, (name, run) in enumerate(runs.items()):
        look = {"color": colour(number), "linestyle": LINES[number % len(LINES)]}
        axes.plot(*zip(*run["curve"], strict=True), linewidth=1, alpha=0.6, **look)
        look["linestyle"] = "none"
        axes.plot(*zip(*run["validation"], strict=True), label=name, marker=MARKERS[number], markersize=4.5, **look)
        if found := first_at_or_below(run["validation"], loss):
            axes.plot([found], [loss], color="black", marker="x", markersize=8, linestyle="none", zorder=4)
    axes.axhline(loss, color="black", linestyle=":", linewidth=1.2)
    ends = [step for run in runs.values() for step, _ in run["validation"]]
    low = min(value for run in runs.values() for _, value in run["validation"])
    axes.set(xscale="log", xlim=(min(ends) / 1.5, 1.1 * max(ends)), ylim=(0.97 * low, low + 1.2))
    axes.set(xlabel="step", ylabel="loss, nats a byte")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    fig.legend(loc="outside upper center", ncols=min(3, len(runs)), frameon=False)
    return _finish(fig, provenance)


def first_at_or_below(curve: Sequence[Sequence[float | int]], loss: float | int) -> int | None:
    """The first step of a curve of (step, loss) at which the loss is at or below ``loss``; None if there is none.

    Example:
        >>> first_at_or_below([[10, 2.0], [20, 1.4], [30, 1.5]], 1.5)
        20
    """
    return next((int(step) for step, value in curve if value <= loss), None)


def say_curves(runs: Mapping[str, Mapping], loss: float | int) -> str:
    """The finding of `draw_curves` as a sentence: held-out loss in the middle and at the end, and the first crossing.

    Example:
        >>> run = {"curve": [[10, 2.0], [20, 1.0]], "validation": [[10, 2.1], [20, 1.2]]}
        >>> say_curves({"dense": run}, loss=1.5)
        'Curves of 1 run. dense: 2.10 at step 10, 1.20 at 20, at or below 1.50 first at 20.'

    Raises ValueError for no run.
    """
    _check_some("runs", runs)
    said = []
    for name, run in runs.items():
        (half, there), (last, end) = run["validation"][(len(run["validation"]) - 1) // 2], run["validation"][-1]
        found = first_at_or_below(run["validation"], loss)
        reached = f"at or below {loss:.2f} first at {found:,}" if found else f"never at {loss:.2f}"
        said.append(f"{name}: {there:.2f} at step {half:,}, {end:.2f} at {last:,}, {reached}.")
    return " ".join([f"Curves of {len(runs)} run{'s' * (len(runs) > 1)}.", *said])


def draw_scaling(
    losses: Mapping[str, Mapping[int, Sequence[float]]],
    laws: Mapping[str, Callable[[int], float]],
    provenance: str = "",
) -> Figure:
    """Draw loss over the number of experts, both logarithmic: marks and their range over seeds, and a fitted law.

    ``losses`` holds, by the name of a size, the losses of every number of experts; ``laws`` gives for each name the
    loss that the law has for a number of experts.

    Example:
        >>> fig = draw_scaling({"small": {1: [2.0, 2.2], 4: [1.9]}}, {"small": lambda experts: 2.1 - 0.05 * experts})
        >>> [round(float(y), 2) for y in fig.axes[0].lines[0].get_ydata()], fig.axes[0].texts[0].get_text()
        ([2.05, 1.9], 'small')

    Raises ValueError for no size, or laws of other sizes.
    """
    _check_sizes(losses, laws)
    fig, axes = new_figure(7.4, 3.8)
    experts = sorted({number for by_experts in losses.values() for number in by_experts})
    for number, (name, by_experts) in enumerate(losses.items()):
        look = {"color": colour(number), "linestyle": LINES[number % len(LINES)]}
        axes.plot(experts, [laws[name](one) for one in experts], linewidth=1.4, **look)
        means = [statistics.fmean(values) for values in by_experts.values()]
        dots = {"color": colour(number), "marker": MARKERS[number], "edgecolors": "black", "zorder": 3, "s": 50}
        axes.scatter(list(by_experts), means, **dots)
        ends = [(min(values), max(values)) for values in by_experts.values()]
        axes.vlines(list(by_experts), *zip(*ends, strict=True), color=colour(number), linewidth=1.6)
        place = {"textcoords": "offset points", "va": "center", "fontsize": 10, "annotation_clip": False}
        axes.annotate(name, (experts[-1], laws[name](experts[-1])), (12, 0), color=colour(number), **place)
    axes.set(xscale="log", yscale="log", xlabel="experts a layer, one a token", ylabel=NATS)
    axes.xaxis.set_major_locator(FixedLocator(experts))
    axes.yaxis.set_major_locator(FixedLocator(_round_ticks(*axes.get_ylim())))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finish(fig, provenance)


def say_scaling(losses: Mapping[str, Mapping[int, Sequence[float]]], laws: Mapping[str, Callable[[int], float]]) -> str:
    """The finding of `draw_scaling` as a sentence: the loss of the fewest and most experts, and the law's worst miss.

    Example:
        >>> say_scaling({"small": {1: [2.0, 2.2], 4: [1.9]}}, {"small": lambda experts: 2.1 - 0.05 * experts})
        'Loss over experts. small: 2.10 with 1, 1.90 with 4. The law misses a mean by 2.4 % at most.'
    """
    _check_sizes(losses, laws)
    said, misses = [], []
    for name, by_experts in losses.items():
        means = {number: statistics.fmean(values) for number, values in by_experts.items()}
        said.append(f"{name}: " + ", ".join(f"{means[n]:.2f} with {n}" for n in (min(means), max(means))) + ".")
        misses += [abs(laws[name](number) / mean - 1) for number, mean in means.items()]
    return " ".join(["Loss over experts.", *said, f"The law misses a mean by {100 * max(misses):.1f} % at most."])


def draw_architectures(rows: Sequence[Mapping], provenance: str = "") -> Figure:
    """Draw each architecture at its parameters (across, logarithmic) and its loss (up); a line is the range of seeds.

    A row has ``name``, ``losses`` of the seeds and ``total_params``; one without losses diverged and is left out. Names
    stand at the right in the order of their losses, the highest on top.

    Example:
        >>> rows = [{"name": "dense", "losses": [2.0, 2.2], "total_params": 100}, {"name": "bad", "losses": []}]
        >>> fig = draw_architectures(rows)
        >>> [text.get_text() for text in fig.legends[0].get_texts()]
        ['2.100  dense']

    Raises ValueError for rows without any loss.
    """
    trained = _trained(rows)
    fig, axes = new_figure(7.6, 4.0)
    for number, row in enumerate(trained):
        mean, filled = statistics.fmean(row["losses"]), number < len(MARKERS)
        marks = {"marker": MARKERS[number % len(MARKERS)], "s": 65, "zorder": 3, "linewidths": 1.5}
        marks |= {"facecolors": colour(number) if filled else "white"}
        marks |= {"edgecolors": "black" if filled else colour(number)}
        axes.scatter([row["total_params"]], [mean], label=f"{mean:.3f}  {row['name']}", **marks)
        axes.vlines(row["total_params"], min(row["losses"]), max(row["losses"]), color=colour(number), linewidth=1.6)
    axes.set(xscale="log", xlabel="parameters", ylabel=NATS)
    _plain_log_axis(axes, [row["total_params"] for row in trained])
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda at: -float(labels[at].split()[0]))
    handles, labels = [handles[at] for at in order], [labels[at] for at in order]
    fig.legend(handles, labels, loc="outside right center", frameon=False, fontsize=10)
    return _finish(fig, provenance)


def say_architectures(rows: Sequence[Mapping]) -> str:
    """The finding of `draw_architectures` as a sentence: the best and the worst, and how far seeds are apart.

    Example:
        >>> rows = [{"name": "dense", "losses": [2.0, 2.2], "total_params": 100}]
        >>> rows.append({"name": "top-1", "losses": [1.9, 1.8], "total_params": 800})
        >>> print(say_architectures(rows))
        Loss over parameters, 2 architectures. Lowest: top-1, 1.850 with 800. Highest: dense, 2.100 with 100. Seeds of \
one architecture differ by up to 0.200.
    """
    trained = sorted(_trained(rows), key=lambda row: statistics.fmean(row["losses"]))
    words = [f"{row['name']}, {statistics.fmean(row['losses']):.3f} with {row['total_params']:,}" for row in trained]
    apart = max(max(row["losses"]) - min(row["losses"]) for row in trained)
    left_out = [row["name"] for row in rows if not row["losses"]]
    diverged = f" Diverged: {', '.join(left_out)}." if left_out else ""
    return (
        f"Loss over parameters, {len(trained)} architectures. Lowest: {words[0]}. Highest: {words[-1]}. "
        f"Seeds of one architecture differ by up to {apart:.3f}.{diverged}"
    )


def provenance(record: Mapping) -> str:
    """Where the runs of a record were trained, in a line.

    Example:
        >>> machine = {"processor": "x86_64", "cores": 2, "torch": "2.13", "python": "3.11"}
        >>> provenance({"preset": "laptop", "date": "2026-01-02", "machine": machine})
        "grid 'laptop' · x86_64, 2 cores · 2026-01-02 · torch 2.13 · Python 3.11"
    """
    machine = record["machine"]
    place = f"{machine['processor']}, {machine['cores']} cores"
    versions = f"torch {machine['torch']} · Python {machine['python']}"
    return f"grid {record['preset']!r} · {place} · {record['date']} · {versions}"


def _check_some(name: str, given: Mapping) -> None:
    if not given:
        raise ValueError(f"{name} must hold at least one entry, got none")


def _check_seeds(arms: Mapping, crossings: Mapping) -> None:
    _check_some("arms", arms)
    if set(arms) != set(crossings):
        raise ValueError(f"crossings must have the seeds of arms, {sorted(arms)}; got {sorted(crossings)}")


def _check_sizes(losses: Mapping, laws: Mapping) -> None:
    _check_some("losses", losses)
    if set(losses) != set(laws):
        raise ValueError(f"laws must have the sizes of losses, {', '.join(losses)}; got {', '.join(laws)}")


def _trained(rows: Sequence[Mapping]) -> list[Mapping]:
    """The rows whose runs came to an end."""
    trained = [row for row in rows if row["losses"]]
    if not trained:
        raise ValueError("rows must hold at least one row with losses, got none")
    return trained


def _by_steps(runs: Runs) -> dict[int, list[float]]:
    """Steps -> the losses of all seeds, the shortest runs first."""
    found: dict[int, list[float]] = {}
    for steps, loss in sorted(runs):
        found.setdefault(steps, []).append(loss)
    return found


def _middle(arms: Mapping[int, Mapping[str, Runs]], crossings: Crossings) -> tuple[float, float]:
    """Half of the way, in log(steps), from the crossings to the dense runs, above the highest dotted line."""
    dense = [seed["dense"][-1] for seed in arms.values()]
    reached = statistics.fmean(steps for steps, _ in crossings.values())
    return (dense[0][0] * reached) ** 0.5, max(loss for _, loss in dense)


def _steps_axis(axes: Axes, steps: list[int]) -> None:
    """Logarithmic, with a tick at every length that was trained."""
    axes.set(xscale="log", xlim=(min(steps) / 1.25, max(steps) * 1.25))
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(steps))))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())


def _round_ticks(low: float, high: float) -> list[float]:
    """Multiples of the finest round step that gives at most seven of them."""
    for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
        ticks = [round(step * number, 2) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(ticks) <= 7:
            break
    return ticks


def _plain_log_axis(axes: Axes, values: list[int]) -> None:
    """A few ticks in plain numbers on a logarithmic axis."""
    low, high = min(values) / 1.3, max(values) * 1.3
    axes.set_xlim(low, high)
    ticks = [lead * 10**power for power in range(1, 13) for lead in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _finish(fig: Figure, provenance: str) -> Figure:
    if provenance:
        fig.supxlabel(provenance, fontsize=8, color="0.3")
    return finish(fig)
