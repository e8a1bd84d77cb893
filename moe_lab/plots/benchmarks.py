"""Figures of benchmark records: times as multiples of a baseline's, and in words what was not measured, and why."""

from collections.abc import Iterable
from textwrap import fill, shorten

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moe_lab.plots.style import MARKERS, colour, finish, new_figure

MOST_PANELS = 6
LAYER = ("tokens", "d_model", "d_expert", "num_experts", "top_k")
TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LONGEST_SENTENCE = 560


def draw_multiples(record, baseline: str, **where: object) -> Figure:
    """Draw each implementation's time as a multiple of the baseline's: a panel a shape, a mark a pass.

    ``record`` is a `moe_lab.bench.reading.Record`; ``where`` chooses among its rows, as ``record.find`` does. A mark is
    the median, its whiskers reach from the 20th to the 80th percentile, both over the median of the baseline on the
    same shape. What was not measured is a line of words, and below the figure stands where the record is from.

    Example:
        >>> from moe_lab.bench import Measured
        >>> from moe_lab.bench.reading import Record
        >>> task = {"direction": "forward", "shape": {"n": 4}, "dtype": "float32"}
        >>> times = [Measured(name, **task, ms_p20=ms, ms_p50=ms, ms_p80=ms) for name, ms in (("a", 2.0), ("b", 3.0))]
        >>> about = {"device": "a desk", "driver": None, "threads": 2, "started": "2026-11-30", "commit": "0123456789"}
        >>> record = Record(about | {"versions": {}}, [*times, Measured("c", **task, why_not="not installed")])
        >>> [text.get_text() for text in draw_multiples(record, "a").axes[0].texts]
        ['1.00', '1.50', 'not measured: not installed']

    Raises ValueError for no row, or more than 6 shapes: say which ones you mean.
    """
    panels, names, series = _arrange(record, baseline, where)
    fig, every = new_figure(
        2.2 + 2.4 * len(panels), 1.6 + 0.36 * len(names), columns=len(panels), sharey=True, squeeze=False
    )
    for axes, (title, rows) in zip(every[0], panels.items(), strict=True):
        axes.axvline(1, color="0.4", linestyle=":", linewidth=1.4)
        for place, name in enumerate(names):
            _draw_row(axes, place, [rows.get((name, one)) for one in series], rows, baseline, series)
        axes.set_title(title, fontsize=10)
        axes.grid(visible=False)
        _scale(axes)
    every[0][0].set_yticks(range(len(names)), names)
    every[0][0].set_ylim(len(names) - 0.4, -0.6)
    looks = [_look(number) for number in range(len(series))]
    handles = [Line2D([], [], linestyle="", label=_label(one), **look) for one, look in zip(series, looks, strict=True)]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(series), frameon=False, fontsize=10)
    source = f"times the time of {baseline}, medians with 20th to 80th percentile\n{record.provenance}"
    fig.supxlabel("\n".join(fill(line, 60 + 30 * len(panels)) for line in source.split("\n")), fontsize=9)
    return finish(fig)


def say_multiples(record, baseline: str, **where: object) -> str:
    """The finding of `draw_multiples` as a sentence, for its alt text: each one's least and most over the shapes.

    Example:
        >>> from moe_lab.bench import Measured
        >>> from moe_lab.bench.reading import Record
        >>> task = {"direction": "forward", "shape": {"n": 4}, "dtype": "float32"}
        >>> times = [Measured(name, **task, ms_p20=ms, ms_p50=ms, ms_p80=ms) for name, ms in (("a", 2.0), ("b", 3.0))]
        >>> say_multiples(Record({}, times), "a")
        'Times as multiples of a, least and most over 1 shape. forward: b 1.50 to 1.50.'
    """
    panels, names, series = _arrange(record, baseline, where)
    count = f"{len(panels)} shape{'s' if len(panels) > 1 else ''}"
    said = [f"Times as multiples of {baseline}, least and most over {count}."]
    for one in series:
        found = {}
        for name in names:
            pairs = [(rows.get((name, one)), rows.get((baseline, one))) for rows in panels.values()]
            found[name] = [row.ms_p50 / base.ms_p50 for row, base in pairs if _timed(row) and _timed(base)]
        rest = [name for name in names if name != baseline]
        parts = [f"{name} {min(found[name]):.2f} to {max(found[name]):.2f}" for name in rest if found[name]]
        missing = [name for name in rest if not found[name]]
        parts += [f"not measured {' and '.join(missing)}"] if missing else []
        said.append(f"{_label(one)}: {', '.join(parts)}.")
    return shorten(" ".join(said), LONGEST_SENTENCE, placeholder=" ...")


def _arrange(record, baseline: str, where: dict) -> tuple[dict[str, dict], list[str], list[tuple[str, str]]]:
    """Panels, by title, of rows by (name, series); all names, the baseline first; all series, each (pass, mode)."""
    chosen = record.find(**where)
    panels: dict[str, dict] = {}
    for row in chosen:
        panels.setdefault(_title(row.shape), {})[row.implementation, (row.direction, row.mode)] = row
    if not 1 <= len(panels) <= MOST_PANELS:
        raise ValueError(f"where must choose rows of 1..{MOST_PANELS} shapes, {where} chooses {len(panels)}")
    series = dict.fromkeys((row.direction, row.mode) for row in chosen)
    names = sorted(dict.fromkeys(row.implementation for row in chosen), key=lambda name: name != baseline)
    return panels, names, list(series)


def _draw_row(axes: Axes, place: int, found: list, rows: dict, baseline: str, series: list) -> None:
    """One implementation on one shape: a mark for each pass, or why there is none."""
    reasons = []
    for number, (row, one) in enumerate(zip(found, series, strict=True)):
        base, height = rows.get((baseline, one)), place + 0.36 * ((number + 0.5) / len(series) - 0.5) * 2
        reasons.append(_why_not(row, base, baseline))
        if reasons[-1] is None:
            low, middle, high = (ms / base.ms_p50 for ms in row.times.values())
            ends = [[middle - low], [high - middle]]
            axes.errorbar(middle, height, xerr=ends, capsize=2.5, linestyle="", elinewidth=1.4, **_look(number))
            beside = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(f"{middle:.2f}", (max(middle, high), height), (5, 0), **beside)
        elif len(set(reasons)) > 1:
            _write(axes, height, f"{_label(one)} {reasons[-1]}", lines=1)
    if len(set(reasons)) == 1 and reasons[0] is not None:
        _write(axes, place, reasons[0])
    elif reasons[0] is not None:  # the first pass failed alone
        _write(axes, place - 0.36 * (1 - 1 / len(series)), f"{_label(series[0])} {reasons[0]}", lines=1)


def _why_not(row, base, baseline: str) -> str | None:
    if row is None:
        return "not in this record"
    if row.ms_p50 is None:
        return f"not measured: {row.why_not}"
    return None if _timed(base) else f"no {baseline} to compare with"


def _write(axes: Axes, height: float | int, words: str, lines: int = 2) -> None:
    """Words in the place of a mark, at the left of the panel. A pass alone has room for one line: two cover others."""
    place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7.5, "style": "italic"}
    axes.text(0.02, height, fill(shorten(words, 40 * lines, placeholder=" ..."), 40), **place)


def _scale(axes: Axes) -> None:
    """Logarithmic, with plain numbers, and room for the words beside the last mark."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(0.8, low), max(2.0, high) * (max(2.0, high) / min(0.8, low)) ** 0.18)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _timed(row) -> bool:
    return row is not None and row.ms_p50 is not None


def _look(number: int) -> dict:
    return {"color": colour(number), "marker": MARKERS[number], "markersize": 6, "markeredgecolor": "black"}


def _label(series: tuple[str, str]) -> str:
    direction, mode = series
    return f"{direction}, CUDA graph" if mode == "graph" else direction


def _title(shape: dict) -> str:
    """The sizes of a layer in two lines; of anything else, as they are called."""
    if not set(LAYER) <= set(shape):
        return fill(_listed(shape.items()), 30)
    tokens, d_model, d_expert, num_experts, top_k = (shape[name] for name in LAYER)
    uneven = shape.get("max_over_mean", 1.0)
    skew = f", busiest {uneven:g} x the mean" if uneven > 1 else ""
    return f"{tokens:,} tokens, {d_model:,} x {d_expert:,}\n{num_experts} experts, top-{top_k}{skew}"


def _listed(sizes: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in sizes)
