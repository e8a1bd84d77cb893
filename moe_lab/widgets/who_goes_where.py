"""Who goes where: which experts read each byte of a text, and whether that says more than shuffled labels would."""

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import traitlets
from jaxtyping import Int64
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.lm import load_model
from moe_lab.specialisation import (
    Chance,
    Labels,
    count_table,
    idle_experts,
    information,
    label_bytes,
    label_classes,
    label_columns,
    label_constructs,
    pointwise_information,
)
from moe_lab.specialisation.chance import percentiles
from moe_lab.specialisation.labels import CONSTRUCTS
from moe_lab.types import Routing
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.passages import MOST_BYTES, held_out_passages
from moe_lab.widgets.route_one_batch import uniform
from moe_lab.widgets.text_view import ORDINALS, check_layers, first_bytes, pieces_of, printable
from moe_lab.widgets.tile_map import per_cent

METRICS = ("share", "pmi", "information")
TEXT = "text"  # the label that says which text a byte is from; it needs all of them
STRETCH = 64  # it stays the same over a text, so it is shuffled by stretches of so many bytes
SHUFFLES = 100
MOST_NUMBERS = 60_000
PASTED = "your text"
NOT_PYTHON = "not Python"


class WhoGoesWhere(LabWidget):
    """Show which expert reads each byte, and what the experts say about labels of bytes beside what chance says.

    ``texts`` has texts by name, by default four held-out passages of the standard library; ``model`` is a
    `LanguageModel`, by default the shipped one, or a function that gives one Routing a layer over a text's bytes. With
    ``routings`` (name -> one Routing a layer) there is no model, and the reader can paste no text. Of each text the
    first 1,024 bytes are read, in windows as long as the model's context.

    ``text``, ``layer``, ``slot`` (-1 for all choices), ``labels`` (token class, construct, position in line, byte,
    text), ``length`` (bytes counted of each text, 0 for all), ``together`` (count all texts as one), ``metric`` (what
    the table shows) and ``expert`` (whose bytes are lit, -1 for all) are the reader's. Chance is that of 100 shuffles
    of the labels, drawn from ``seed``, the same in the browser as here: byte by byte, or where the label is the text,
    by stretches of 64 bytes.

    Example:
        >>> def read(text):
        ...     experts = torch.tensor([[byte % 4] for byte in text.encode()])
        ...     return [Routing(experts, torch.ones(experts.shape), num_experts=4)]
        >>> WhoGoesWhere({"sums": "1 + 2 + 3\\n" * 6}, read)  # doctest: +NORMALIZE_WHITESPACE
        WhoGoesWhere: Layer 0, first choice, 60 bytes of “sums”: the expert says 1.37 bits about the token class, more
        than chance, for with shuffled labels it says 0.04 to 0.23. 9 of 16 pairs lie outside what shuffling gives; the
        strongest is “space” at expert 0, 1.32 bits. These bytes leave 0 % of the experts idle; bytes at random with the
        loads of all texts would leave 0 %.

    Raises ValueError or TypeError for no texts, one that is empty or no string, a model that is neither, routings that
    are not one Routing a layer and a token a byte for each text, and more numbers than a page can hold.
    """

    _esm = Path(__file__).with_name("who_goes_where.js")
    _css = Path(__file__).with_name("who_goes_where.css")
    of_the_reader = ("pasted", "text", "layer", "slot", "metric", "labels", "together", "length", "shuffle", "seed")
    of_the_reader += ("expert",)

    texts = traitlets.List(traitlets.Dict()).tag(sync=True)  # name, pieces, labels by kind, experts[layer][byte][slot]
    label_names = traitlets.Dict().tag(sync=True)
    num_experts = traitlets.Int().tag(sync=True)
    reads = traitlets.Bool(True).tag(sync=True)  # whether there is a model for pasted texts
    pasted = traitlets.Unicode().tag(sync=True)
    read_pasted = traitlets.Unicode().tag(sync=True)  # the pasted text that the texts above hold
    error = traitlets.Unicode().tag(sync=True)
    text = traitlets.Int(0, min=0).tag(sync=True)
    layer = traitlets.Int(0, min=0).tag(sync=True)
    slot = traitlets.Int(0, min=-1).tag(sync=True)
    metric = traitlets.Enum(METRICS, "pmi").tag(sync=True)
    labels = traitlets.Unicode("token class").tag(sync=True)
    together = traitlets.Bool(False).tag(sync=True)
    length = traitlets.Int(0, min=0).tag(sync=True)
    shuffle = traitlets.Bool(False).tag(sync=True)
    seed = traitlets.Int(0, min=0, max=2**31 - 1).tag(sync=True)
    expert = traitlets.Int(-1, min=-1).tag(sync=True)

    def __init__(
        self,
        texts: dict[str, str] | None = None,
        model: object = None,
        *,
        routings: dict[str, list[Routing]] | None = None,
        **settings: object,
    ):
        if routings is not None and (texts is None or model is not None or set(routings) != set(texts)):
            raise ValueError("routings must come with texts of the same names, and without a model")
        texts = held_out_passages() if texts is None else texts
        if not texts or not all(isinstance(text, str) and text for text in texts.values()):
            raise ValueError("texts must hold at least one text by name, each a string that is not empty")
        self._read = None if routings is not None else reader_of(load_model() if model is None else model)
        self._given = [read_entry(name, text, self._read, routings) for name, text in texts.items()]
        laid = lay_out(self._given)
        check_settings(settings, kinds_of(laid["label_names"], laid["texts"]))
        super().__init__(**laid, reads=routings is None, **settings)
        self.observe(self._read_pasted, "pasted")

    @property
    def kinds(self) -> list[str]:
        """The kinds of labels that these texts have."""
        return kinds_of(self.label_names, self.texts)

    def fitted(self) -> dict[str, object]:
        """The settings, as near to what they are as these texts allow."""
        text = min(self.text, len(self.texts) - 1)
        labels = self.labels if self.labels in self.kinds else self.kinds[0]
        together = self.together or labels == TEXT
        experts = self.texts[text]["experts"]
        longest = max(len(one["pieces"]) for one in (self.texts if together else [self.texts[text]]))
        return {
            "text": text,
            "layer": min(self.layer, len(experts) - 1),
            "slot": min(self.slot, len(experts[0][0]) - 1),
            "labels": labels,
            "together": together,
            "length": min(self.length or longest, longest),
        }

    def count(self) -> dict[str, object]:
        """What the widget counts.

        ``names`` of the labels; for each layer ``loads``, ``bits``, ``chance`` (low, mean, high of shuffled labels),
        ``idle`` (experts), ``random`` and ``equal`` (shares that random bytes leave idle, with the loads of all texts
        and with equal ones); of the chosen layer ``pairs`` and of its first shuffle ``mixed``, ``low`` and ``high``:
        assignments by label and expert. ``tokens`` is how many bytes are counted.
        """
        state = self.fitted()
        found = {name: [] for name in ("loads", "bits", "chance", "idle", "random", "equal")}
        for layer in range(len(self.texts[0]["experts"])):
            one = self._inform(state, state["labels"], layer)
            load, tokens = one["pairs"].sum(dim=0), one["tokens"]
            everything = self._sample({**state, "together": True, "length": MOST_BYTES}, TEXT, layer)[0]
            found["loads"].append(load.tolist())
            found["bits"].append(one["bits"])
            found["chance"].append(one["chance"])
            found["idle"].append(int((load == 0).sum()))
            found["random"].append(idle_experts(everything, self.num_experts, tokens).chance)
            found["equal"].append((1 - float(load.sum()) / tokens / self.num_experts) ** tokens)
            if layer == state["layer"]:
                chosen = one
        edges = [percentiles(cell) for cell in chosen["shuffled"].flatten(1).T.double().tolist()]
        low, high = torch.tensor(edges, dtype=torch.float64).T.reshape(2, *chosen["pairs"].shape)
        found.update(pairs=chosen["pairs"], mixed=chosen["shuffled"][0], low=low, high=high)
        found.update(names=chosen["names"], tokens=chosen["tokens"])
        return found

    def compare_labels(self) -> dict[str, list[tuple[float, tuple]]]:
        """Bits in every layer of every kind of label, each with (low, mean, high) of shuffled labels."""
        state = self.fitted()
        found = {}
        for kind in self.kinds:
            layers = [self._inform(state, kind, layer) for layer in range(len(self.texts[0]["experts"]))]
            found[kind] = [(one["bits"], one["chance"]) for one in layers]
        return found

    def summary(self, found: dict[str, object] | None = None) -> str:
        """The sentence that the widget reads out, computed here, or from what `count` has found already."""
        state, found = self.fitted(), self.count() if found is None else found
        layer, pairs = state["layer"], found["pairs"]
        bits, (low, _, high) = found["bits"][layer], found["chance"][layer]
        where = f"all {len(self.texts)} texts" if state["together"] else f"“{self.texts[state['text']]['name']}”"
        seen = pairs.sum(dim=1) > 0
        outside = ((pairs < found["low"]) | (pairs > found["high"])) & seen[:, None]
        verdict = "more than chance" if bits > high else "no more than chance"
        return (
            f"Layer {layer}, {name_slot(state['slot'])}, {found['tokens']} bytes of {where}: the expert says "
            f"{bits:.2f} bits about the {state['labels']}, {verdict}, for with shuffled labels it says {low:.2f} to "
            f"{high:.2f}. {int(outside.sum())} of {int(seen.sum()) * self.num_experts} pairs lie outside what "
            f"shuffling gives{say_strongest(found, outside)}. These bytes leave "
            f"{per_cent(found['idle'][layer], self.num_experts)} % of the experts idle; bytes at random with the loads "
            f"of all texts would leave {per_cent(found['random'][layer], 1)} %."
        )

    def __repr__(self) -> str:
        return f"WhoGoesWhere: {self.summary()}"

    def _sample(self, state: dict, kind: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Experts of every token that counts, the unit that it is shuffled in, and the label of each unit."""
        by_text = kind == TEXT
        chosen = self.texts if state["together"] or by_text else [self.texts[state["text"]]]
        experts, units, ids = [], [], []
        for number, one in enumerate(chosen):
            rows = one["experts"][layer][: state["length"]]
            first = len(ids)
            experts += rows if state["slot"] < 0 else [row[state["slot"] : state["slot"] + 1] for row in rows]
            units += [first + (byte // STRETCH if by_text else byte) for byte in range(len(rows))]
            ids += [number] * -(-len(rows) // STRETCH) if by_text else one["labels"][kind][: state["length"]]
        return torch.tensor(experts), torch.tensor(units), torch.tensor(ids)

    def _inform(self, state: dict, kind: str, layer: int) -> dict[str, object]:
        """The counts of one layer and those of every shuffle, and the bits of both."""
        experts, units, ids = self._sample(state, kind, layer)
        names = [one["name"] for one in self.texts] if kind == TEXT else self.label_names[kind]
        sizes = (len(names), self.num_experts)
        pairs = count_table(experts, ids[units], self.num_experts, len(names))
        orders = draw_orders(self.seed, len(ids))  # all at once: a shuffle's labels are numbered after the one before
        labels = ids[orders][:, units] + len(names) * torch.arange(SHUFFLES)[:, None]
        repeated = experts.repeat(SHUFFLES, 1)
        shuffled = count_table(repeated, labels.flatten(), self.num_experts, SHUFFLES * len(names)).view(-1, *sizes)
        chance = Chance(tuple(information(one) for one in shuffled))
        low, high = chance.interval
        bounds = (low, chance.mean, high)
        counts = {"pairs": pairs, "shuffled": shuffled, "names": names, "tokens": len(experts)}
        return {**counts, "bits": information(pairs), "chance": bounds}

    def _read_pasted(self, _change):
        text = self.pasted.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
        entries, error = list(self._given), ""
        try:
            if text and self._read:
                entries.append(read_entry(PASTED, text, self._read))
            laid = lay_out(entries)
        except Exception as problem:  # whatever happens in the model, the reader of the page gets a sentence
            error = " ".join(f"This text could not be read: {type(problem).__name__}: {problem}".split())[:300]
            laid = lay_out(self._given)
        with self.hold_sync(), self.hold_trait_notifications():  # nobody sees half of a new text
            for name, value in laid.items():
                setattr(self, name, value)
            self.text = len(self.texts) - 1 if len(self.texts) > len(self._given) else 0
            self.error, self.read_pasted = error, self.pasted


def check_settings(settings: dict[str, object], kinds: list[str]) -> None:
    """Refuse settings that no widget has, and values that no text could have."""
    lowest = {"text": 0, "layer": 0, "slot": -1, "length": 0, "seed": 0, "expert": -1}
    allowed = {"metric": METRICS, "labels": kinds, "together": (False, True), "shuffle": (False, True)}
    for name, value in settings.items():
        if name in lowest:
            check_whole(name, value, lowest[name], 2**31 - 1)
        elif name not in allowed:
            raise TypeError(f"there is no setting {name!r}, only {', '.join([*lowest, *allowed])}")
        elif value not in allowed[name]:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed[name]))}; got {value!r}")


def kinds_of(label_names: dict[str, list[str]], texts: list[dict]) -> list[str]:
    """The kinds of labels: those of bytes, and with several texts which text it is."""
    return [*label_names, *([TEXT] if len(texts) > 1 else [])]


def reader_of(model: object) -> Callable[[str], list[Routing]]:
    """A function from a text of any length to one Routing a layer: a language model reads in windows of its context."""
    if hasattr(model, "read") and hasattr(model, "config"):
        return lambda text: read_windows(model.read, text, model.config.context)
    if not callable(model):
        raise TypeError(f"model must be a LanguageModel or a function of a text, got {model!r:.80}")
    return model


def read_windows(read: Callable[[str], list[Routing]], text: str, window_bytes: int) -> list[Routing]:
    """Read a text in windows of whole characters, each without what came before, and join the routings.

    Example:
        >>> def read(text):
        ...     return [Routing(torch.zeros(len(text), 1, dtype=torch.int64), torch.ones(len(text), 1), 4)]
        >>> read_windows(read, "abcde", window_bytes=2)[0].tokens
        5
    """
    windows = []
    while text:
        window = first_bytes(text, window_bytes)
        windows.append(read(window))
        text = text[len(window) :]
    return [
        Routing(
            torch.cat([one.experts for one in layer]), torch.cat([one.weights for one in layer]), layer[0].num_experts
        )
        for layer in zip(*windows, strict=True)
    ]


def read_entry(
    name: str,
    text: str,
    read: Callable[[str], list[Routing]] | None,
    routings: dict[str, list[Routing]] | None = None,
) -> dict[str, object]:
    """A text's first bytes, their labels, and what a model or somebody's routings say about them."""
    shown, whole = first_bytes(text, MOST_BYTES), text.encode()
    count = len(shown.encode())
    try:
        layers = check_layers(read(shown), count) if read else check_layers(routings[name], len(whole))
    except ValueError as problem:
        raise ValueError(f"model or routings must fit the text {name!r}: {problem}") from None
    cut = f", first {count:,} of {len(whole):,} bytes" if count < len(whole) else ""
    return {
        "name": f"{name}{cut}",
        "pieces": pieces_of(shown, MOST_BYTES),
        "labels": {kind: Labels(one.values[:count], one.names) for kind, one in label_text(whole).items()},
        "experts": [layer.experts[:count].tolist() for layer in layers],
        "sizes": (len(layers), layers[0].num_experts, layers[0].slots),
    }


def label_text(text: bytes) -> dict[str, Labels]:
    """Every kind of label of a text's bytes; what is no Python has "not Python" for its construct.

    Example:
        >>> {kind: labels.words()[0] for kind, labels in label_text(b"x = (").items()}
        {'token class': 'letter', 'construct': 'not Python', 'position in line': '0', 'byte': "'x'"}
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in a pasted text
        try:
            constructs = label_constructs(text)
        except ValueError:
            constructs = Labels(torch.full((len(text),), len(CONSTRUCTS)), (*CONSTRUCTS, NOT_PYTHON))
    return {
        "token class": label_classes(text),
        "construct": constructs,
        "position in line": label_columns(text),
        "byte": label_bytes(text),
    }


def lay_out(entries: list[dict[str, object]]) -> dict[str, object]:
    """What the page gets of all texts: each one's pieces, experts and labels, and the names that labels stand for.

    Raises ValueError for texts that differ in layers, experts or slots, and for more numbers than a page can hold.
    """
    sizes = {entry["sizes"] for entry in entries}
    if len(sizes) > 1:
        raise ValueError(f"texts must have the same layers, num_experts and slots; got {sorted(sizes)}")
    layers, num_experts, slots = sizes.pop()
    numbers = layers * slots * sum(len(entry["pieces"]) for entry in entries)
    if numbers > MOST_NUMBERS:
        raise ValueError(f"texts must have at most {MOST_NUMBERS:,} bytes x layers x slots, got {numbers:,}")
    texts = [{name: entry[name] for name in ("name", "pieces", "experts")} for entry in entries]
    names = {}
    for kind in entries[0]["labels"]:
        of_kind = [entry["labels"][kind] for entry in entries]
        values, names[kind] = [one.values.tolist() for one in of_kind], max((one.names for one in of_kind), key=len)
        if kind == "byte":
            values, names[kind] = renumber(values)
        for text, own in zip(texts, values, strict=True):
            text.setdefault("labels", {})[kind] = own
    return {
        "texts": texts,
        "label_names": {kind: list(some) for kind, some in names.items()},
        "num_experts": num_experts,
    }


def renumber(values: list[list[int]]) -> tuple[list[list[int]], list[str]]:
    """Bytes by how often they occur, and what to show for each.

    Example:
        >>> renumber([[32, 97, 97], [97, 200]])
        ([[1, 0, 0], [0, 2]], ['a', '␣', '0xC8'])
    """
    often = Counter(value for some in values for value in some)
    order = sorted(often, key=lambda byte: (-often[byte], byte))
    place = {byte: number for number, byte in enumerate(order)}
    names = [printable(chr(byte)) if byte < 128 else f"0x{byte:02X}" for byte in order]
    return [[place[value] for value in some] for some in values], names


@functools.lru_cache(maxsize=4)
def draw_orders(seed: int, units: int) -> Int64[Tensor, "shuffles units"]:
    """Orders of so many units: in shuffle s, unit u gets the label of unit orders[s, u].

    Example:
        >>> sorted(draw_orders(0, 5)[0].tolist())
        [0, 1, 2, 3, 4]
    """
    keys = torch.tensor([uniform(seed, place) for place in range(SHUFFLES * units)], dtype=torch.float64)
    return keys.view(SHUFFLES, units).argsort(dim=1, stable=True)


def name_slot(slot: int) -> str:
    """The name of a choice, -1 for all of them."""
    if slot < 0:
        return "all choices"
    return f"{ORDINALS[slot] if slot < len(ORDINALS) else f'number {slot + 1}'} choice"


def say_strongest(found: dict[str, object], outside: Tensor) -> str:
    """The pair with the most bytes beyond what its label and its expert alone give, of those beyond chance."""
    bits = pointwise_information(found["pairs"])
    beyond = torch.where(outside & (found["pairs"] > 0), found["pairs"] * bits, 0.0)
    label, expert = divmod(int(beyond.argmax()), beyond.shape[1])
    if beyond[label, expert] <= 0:
        return ""
    return f"; the strongest is “{found['names'][label]}” at expert {expert}, {float(bits[label, expert]):.2f} bits"
