"""What was seen of a model's routing: its layers, the token ids of the kept tokens, and what can be made of them."""

import html
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Int64
from matplotlib.figure import Figure
from torch import Tensor

from moe_lab.hf.ring import Ring
from moe_lab.hf.watched_layer import WatchedLayer
from moe_lab.paths import check_new_or_ours
from moe_lab.plots.watching import draw_loads, say_loads
from moe_lab.writing import write_whole

COLUMNS = ("layer", "experts", "tokens", "max/mean", "variance", "cv", "entropy", "gini", "dead", "dropped", "chance")
"""Of a table. ``chance`` is the cv that fair lots would still leave, `Balance.noise_floor_cv`."""


@dataclass(eq=False)
class Recording:
    """Layers that were watched, in the order of the model; a `watch`, or what was loaded of one.

    ``about`` says what ran: model, machine, versions, dates.
    """

    layers: list[WatchedLayer]
    about: dict
    ids_kept: Ring = field(repr=False)

    @property
    def token_ids(self) -> Int64[Tensor, " kept"] | None:
        """The input ids of the kept tokens, -1 where a call had none; None where they are not known.

        They are known where the model itself was called, each layer that was reached got every token once, and the
        ids came as ``input_ids`` or as the first argument. The layers of an encoder and its decoder get different
        tokens, so they are not known there.
        """
        reached = [layer for layer in self.layers if layer.calls]
        if not reached or not all(layer.aligned and layer.tokens == self.ids_kept.added for layer in reached):
            return None
        ids = self.ids_kept.read().cpu().reshape(-1)
        return None if len(ids) != reached[0].kept or bool((ids < 0).all()) else ids

    def rows(self) -> list[dict]:
        """A dictionary a layer, with the names of `COLUMNS`: the whole name, and numbers as they are."""
        found = []
        for layer in self.layers:
            balance = layer.balance
            measures = (balance.max_over_mean, balance.variance, balance.cv, balance.entropy, balance.gini)
            rest = (balance.dead, balance.dropped_fraction, balance.noise_floor_cv)
            name = " = ".join([layer.name, *layer.also])
            values = (name, layer.num_experts, layer.tokens, *measures, *rest)
            found.append(dict(zip(COLUMNS, values, strict=True)))
        return found

    def cells(self) -> list[list[str]]:
        """The rows as rounded text."""
        return [[_cell(name, value) for name, value in row.items()] for row in self.rows()]

    def table(self) -> str:
        """A line a layer: tokens, and every measure of `measure_balance` that its load has."""
        lines = [list(COLUMNS), *self.cells()]
        wide = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        shown = [
            "  ".join([line[0].ljust(wide[0]), *(cell.rjust(w) for cell, w in zip(line[1:], wide[1:], strict=True))])
            for line in lines
        ]
        return "\n".join([*(line.rstrip() for line in shown), self.say_kept()])

    def say_kept(self) -> str:
        """In a sentence, how many tokens are kept, and what was left out."""
        most = max(self.layers, key=lambda layer: layer.tokens)
        padded, again = max(la.padded for la in self.layers), max(la.recomputed for la in self.layers)
        words = f"Loads count every token; token -> expert is kept of the last {most.kept:,} of {most.tokens:,} tokens"
        words += f"; {padded:,} tokens of padding were left out" if padded else ""
        return words + (f"; {again:,} recomputed calls were not counted again." if again else ".")

    def plot(self) -> Figure:
        """The load of every expert as a heat map, layers down; `say` has its words."""
        return draw_loads([layer.name for layer in self.layers], [layer.load for layer in self.layers])

    def say(self) -> str:
        """The finding of `plot` in words, for ``ml.show``."""
        return say_loads([layer.name for layer in self.layers], [layer.load for layer in self.layers])

    def save(self, path: str | Path) -> Path:
        """Write everything to ``path``, .json or .parquet; `load_watch` reads it. Parquet needs pyarrow."""
        from moe_lab.hf.saving import save_recording

        return save_recording(self, Path(path))

    def report(self, path: str | Path) -> Path:
        """Write one HTML page that asks for nothing from outside: what ran, table, figures, what is not known.

        Raises ValueError for a file of that name that is no such page; CannotWrite.
        """
        from moe_lab.hf.report import BEGINS, make_page

        return write_whole(check_new_or_ours(path, BEGINS), make_page(self))

    def _repr_html_(self) -> str:
        return html_table(self)

    def __repr__(self) -> str:
        tokens = max((layer.tokens for layer in self.layers), default=0)
        return f"{type(self).__name__}({self.about['model']}, {len(self.layers)} MoE layers, {tokens:,} tokens)"


def html_table(recording: Recording, caption: str = "") -> str:
    """The table as HTML: a header for every column and every layer; names are escaped."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in COLUMNS)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in recording.cells()
    )
    said = html.escape(caption or recording.say_kept())
    return f"<table><caption>{said}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(name: str, value: str | float | int) -> str:
    if name == "dropped":
        return f"{value:.2%}"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
