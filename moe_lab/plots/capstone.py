"""Figure of lesson 15: which designs of a grid keep every budget, and what the others break."""

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_lab.plots.style import colour, finish, hatch, new_figure

KEPT = "every budget kept"
MOST_LETTERS = 4


def draw_region(
    broken: Sequence[Sequence[Sequence[str]]], columns: Sequence[int], rows: Sequence[int], names: tuple[str, str]
) -> Figure:
    """Draw a field a design: white where it keeps every budget, else in the colour and pattern of its first broken one.

    ``broken[row][column]`` are the names of the budgets that the design breaks, the worst first; letters in a field
    stand for them, and the legend spells them out. ``names`` are those of columns and rows.

    Example:
        >>> fig = draw_region([[[], ["memory"]]], [8, 16], [2], ("experts", "top_k"))
        >>> [text.get_text() for text in fig.axes[0].texts], fig.axes[0].get_xlabel()
        (['ok', 'm'], 'experts')

    Raises ValueError for a grid that is empty or of another shape than its columns and rows.
    """
    letters = _letters(_check_grid(broken, columns, rows))
    fig, axes = new_figure(1.4 + 0.62 * len(columns) + 1.8, 1.1 + 0.42 * len(rows))
    for y, line in enumerate(broken):
        for x, found in enumerate(line):
            kind = list(letters).index(found[0]) if found else None
            look = {"facecolor": "white"} if kind is None else {"facecolor": colour(kind) + "66", "hatch": hatch(kind)}
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, edgecolor="0.6", linewidth=0.5, **look))
            said = "".join(letters[name] for name in found[:MOST_LETTERS]) if found else "ok"
            box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            weight = "normal" if found else "bold"
            axes.text(x, y, said, ha="center", va="center", fontsize=9, bbox=box, weight=weight)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5), xlabel=names[0], ylabel=names[1])
    axes.set_xticks(range(len(columns)), [f"{value:,}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:,}" for value in rows])
    axes.grid(visible=False)
    shown = [name for name in letters if any(found and found[0] == name for line in broken for found in line)]
    marks = [Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="0.6")]
    marks += [_mark(list(letters).index(name)) for name in shown]
    rest = [name for name in letters if name not in shown]
    marks += [Rectangle((0, 0), 1, 1, alpha=0) for _ in rest]
    labels = [f"ok: {KEPT}", *(f"{letters[name]}: {name}" for name in [*shown, *rest])]
    fig.legend(marks, labels, loc="outside right upper", frameon=False, title="worst broken, by colour")
    return finish(fig)


def say_region(
    broken: Sequence[Sequence[Sequence[str]]], columns: Sequence[int], rows: Sequence[int], names: tuple[str, str]
) -> str:
    """The finding of `draw_region` as a sentence: the designs that keep every budget, and what breaks most of the rest.

    Example:
        >>> say_region([[[], ["memory"]]], [8, 16], [2], ("experts", "top_k"))
        '1 of 2 designs keeps every budget: top_k 2 with experts 8. Of the others memory is broken worst in 1.'

    Raises: see `draw_region`.
    """
    _check_grid(broken, columns, rows)
    kept = [
        f"{names[1]} {row:,} with {names[0]} {_join([c for c, found in zip(columns, line, strict=True) if not found])}"
        for row, line in zip(rows, broken, strict=True)
        if not all(line)
    ]
    count = sum(not found for line in broken for found in line)
    worst = Counter(found[0] for line in broken for found in line if found).most_common()
    said = f"{count} of {len(columns) * len(rows)} designs keep{'s' * (count == 1)} every budget"
    said += f": {'; '.join(kept)}." if kept else "."
    if not worst:
        return said
    (first, number), *others = worst
    return (
        f"{said} Of the others {first} is broken worst in {number}" + "".join(f", {n} in {m}" for n, m in others) + "."
    )


def _mark(kind: int) -> Rectangle:
    return Rectangle((0, 0), 1, 1, facecolor=colour(kind) + "66", hatch=hatch(kind), edgecolor="0.6")


def _join(values: Sequence[int]) -> str:
    """Values in words."""
    return ", ".join(f"{value:,}" for value in values)


def _letters(names: Sequence[str]) -> dict[str, str]:
    """Each budget's first letter that no earlier one has."""
    letters: dict[str, str] = {}
    for name in names:
        letters[name] = next(letter for letter in name if letter not in {*letters.values()})
    return letters


def _check_grid(broken: Sequence[Sequence[Sequence[str]]], columns: Sequence[int], rows: Sequence[int]) -> list[str]:
    """Refuse a grid of another shape; the budgets that it names, in alphabetical order."""
    found = [len(line) for line in broken]
    if not columns or not rows or found != [len(columns)] * len(rows):
        raise ValueError(f"broken must be {len(rows)} rows of {len(columns)}, at least one each; got rows of {found}")
    return sorted({name for line in broken for names in line for name in names})
