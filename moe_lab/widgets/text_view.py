"""Text view: the bytes of a sentence, and which experts read each of them in every layer."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import traitlets

from moe_lab.types import Routing
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.route_one_batch import check_range, name_idle

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣"}
CONTINUED = "⋯"  # a byte that continues the character before it


class TextView(LabWidget):
    """Show which experts read each byte of a sentence, and let the reader type another one.

    ``read`` takes the text and gives one Routing a layer over its UTF-8 bytes. It is called at once
    and after each change of ``text``, with no more whole characters than fit in ``max_bytes``.
    ``layer`` counts from 0; ``slot`` is the choice that is counted, 0 the first and -1 all of them.
    An error in ``read`` becomes the sentence on the page.

    Example:
        >>> import torch
        >>> def read(text):
        ...     experts = torch.tensor([[byte % 4] for byte in text.encode()])
        ...     return [Routing(experts, torch.ones(experts.shape), num_experts=4)]
        >>> TextView(read, "moe")
        TextView: Layer 0, first choice: 3 bytes, busiest expert 1 takes 2 of 3 (67 %); experts 0 and 2 have none.

    Raises ValueError for max_bytes outside 1..2000, TypeError for a ``read`` that cannot be called.
    """

    _esm = Path(__file__).with_name("text_view.js")
    _css = Path(__file__).with_name("text_view.css")
    of_the_reader = ("text", "layer", "slot")

    text = traitlets.Unicode().tag(sync=True)
    read_text = traitlets.Unicode().tag(sync=True)  # the text that the reading below belongs to
    total_bytes = traitlets.Int().tag(sync=True)  # of read_text; there are as many pieces as were shown to `read`
    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    experts = traitlets.List().tag(sync=True)  # [layer][byte][slot]
    weights = traitlets.List().tag(sync=True)
    num_experts = traitlets.Int().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    layer = traitlets.Int(0, min=0).tag(sync=True)
    slot = traitlets.Int(0, min=-1).tag(sync=True)

    def __init__(self, read: Callable, text: str, max_bytes: int = 200):
        if not callable(read):
            raise TypeError(f"read must be a function of a text, got {read!r}")
        check_range("max_bytes", max_bytes, 1, 2000)
        self._read, self._max_bytes = read, max_bytes
        super().__init__(text=text)
        self.observe(self._update_reading, "text")
        self._update_reading()

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here.

        Example:
            >>> TextView(lambda text: [], "").summary()
            'There is no text to read yet.'
        """
        if self.error:
            return f"This text could not be read: {self.error}"
        if not self.pieces:
            return "There is no text to read yet."
        layer = min(self.layer, len(self.experts) - 1)
        slot = min(self.slot, len(self.experts[layer][0]) - 1)
        load, shown = self.load(layer, slot), len(self.pieces)
        busiest, total = load.index(max(load)), max(1, sum(load))
        share = (200 * load[busiest] + total) // (2 * total)  # whole per cent, a half upwards, as the browser has it
        choice = "all choices" if slot < 0 else f"{ORDINALS[slot]} choice"
        cut = f" Only the first {shown} of {self.total_bytes} bytes are shown." if shown < self.total_bytes else ""
        return (
            f"Layer {layer}, {choice}: {shown} {'byte' if shown == 1 else 'bytes'}, busiest expert {busiest} "
            f"takes {load[busiest]} of {sum(load)} ({share} %); {name_idle(load)}.{cut}"
        )

    def load(self, layer: int, slot: int = -1) -> list[int]:
        """Count the bytes of each expert in one layer, by one choice or (-1) by all; empty slots count nowhere.

        Example:
            >>> view = TextView(lambda text: [], "")
            >>> view.experts, view.num_experts = [[[0, 1], [2, -1]]], 3
            >>> view.load(0), view.load(0, slot=0)
            ([1, 1, 1], [1, 0, 1])
        """
        load = [0] * self.num_experts
        for row in self.experts[layer]:
            for expert in row if slot < 0 else row[slot : slot + 1]:
                if expert >= 0:
                    load[expert] += 1
        return load

    def __repr__(self) -> str:
        return f"TextView: {self.summary()}"

    def _update_reading(self, _change=None):
        text = self.text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
        pieces, layers, error = pieces_of(text, self._max_bytes), [], ""
        try:
            if pieces:
                layers = check_layers(self._read(first_bytes(text, self._max_bytes)), len(pieces))
        except Exception as problem:  # whatever happens in `read`, the reader of the page gets a sentence
            pieces, error = [], " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        with self.hold_sync(), self.hold_trait_notifications():  # nobody sees half of a new reading
            self.error, self.pieces, self.total_bytes = error, pieces, len(text.encode())
            self.experts = [routing.experts.tolist() for routing in layers]
            self.weights = [[[round(w, 4) for w in row] for row in routing.weights.tolist()] for routing in layers]
            self.num_experts = layers[0].num_experts if layers else 0
            self.read_text = self.text


def check_layers(layers: object, num_bytes: int) -> list[Routing]:
    """Refuse what is not one Routing a layer over ``num_bytes`` bytes and one number of experts."""
    if not isinstance(layers, (list, tuple)) or {type(layer) for layer in layers} != {Routing}:
        raise ValueError(f"read must return a list with one Routing a layer, got {layers!r}")
    sizes = {(layer.tokens, layer.num_experts, layer.slots) for layer in layers}
    if len(sizes) > 1 or layers[0].tokens != num_bytes:
        raise ValueError(
            f"read must return {num_bytes} tokens, one a byte, and the same num_experts and slots in each layer; "
            f"got (tokens, num_experts, slots) = {', '.join(map(str, sorted(sizes)))}"
        )
    return list(layers)


def first_bytes(text: str, max_bytes: int) -> str:
    """As many whole characters as fit in ``max_bytes`` of UTF-8.

    Example:
        >>> first_bytes("naïve", 3)
        'na'
    """
    return text.encode()[:max_bytes].decode("utf-8", "ignore")


def pieces_of(text: str, max_bytes: int) -> list[str]:
    """One printable string for each byte: the character on its first byte, "⋯" on those that continue it.

    Example:
        >>> pieces_of("a ï\\n", 200)
        ['a', '␣', 'ï', '⋯', '⏎']
    """
    pieces = []
    for character in first_bytes(text, max_bytes):
        pieces += [printable(character)] + [CONTINUED] * (len(character.encode()) - 1)
    return pieces


def printable(character: str) -> str:
    """Show what takes no space by itself: a sign for white space, an accent on a circle, else its code point."""
    kind = unicodedata.category(character)
    if character in SIGNS:
        return SIGNS[character]
    if kind in ("Mn", "Me"):
        return f"◌{character}"
    return f"U+{ord(character):04X}" if kind[0] in "CZ" else character
