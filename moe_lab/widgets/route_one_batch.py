"""Route one batch: a table of router logits to change, and where its tokens go."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
import traitlets

from moe_lab.routers import route
from moe_lab.types import Routing
from moe_lab.widgets.lab_widget import LabWidget

SCORES = {"softmax": "softmax", "sigmoid": "sigmoid", "softmax_after_top_k": "softmax after top-k"}
TOKENS = 12  # rows where neither logits nor labels say how many


class RouteOneBatch(LabWidget):
    """Show where each token of a batch goes, and let the reader change the logits and the rule.

    weights = score(logits / temperature) of the top_k highest logits; equal logits go to the lower
    expert. ``logits`` (tokens, experts) decide ``num_experts``; without them, they are drawn from
    ``seed``, a row for each of ``labels``, the same numbers in the browser as here.

    Example:
        >>> RouteOneBatch([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).summary()  # doctest: +NORMALIZE_WHITESPACE
        '2 tokens, top-2 of 3 experts by softmax: busiest expert 0 has 2 of 4 assignments, max over
        mean 1.50; every expert has some. First choices weigh 0.50 on average.'

    Raises ValueError for logits that are no finite table of 2 to 64 columns, another number of labels
    than rows, and a num_experts, top_k, score, temperature or seed out of range.
    """

    _esm = Path(__file__).with_name("route_one_batch.js")
    _css = Path(__file__).with_name("route_one_batch.css")
    of_the_reader = ("logits", "num_experts", "top_k", "score", "renormalise", "temperature", "seed")

    logits = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    num_experts = traitlets.Int(8, min=2, max=64).tag(sync=True)
    top_k = traitlets.Int(2, min=1, max=8).tag(sync=True)
    score = traitlets.Enum(tuple(SCORES), "softmax").tag(sync=True)
    renormalise = traitlets.Bool(False).tag(sync=True)
    temperature = traitlets.Float(1.0, min=0.05, max=10.0).tag(sync=True)
    seed = traitlets.Int(0, min=0, max=2**31 - 1).tag(sync=True)

    def __init__(
        self,
        logits: Iterable | None = None,
        labels: list[str] | None = None,
        num_experts: int = 8,
        top_k: int = 2,
        score: str = "softmax",
        temperature: float | int = 1.0,
        seed: int = 0,
        renormalise: bool = False,
    ):
        table = None if logits is None else as_table(logits)
        num_experts = num_experts if table is None else len(table[0])
        check_range("num_experts", num_experts, 2, 64)
        check_range("top_k", top_k, 1, min(8, num_experts))
        check_range("temperature", temperature, 0.05, 10.0)
        check_range("seed", seed, 0, 2**31 - 1)
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}; got {score!r}")
        table = table or draw_logits(seed, len(labels or []) or TOKENS, num_experts)
        labels = labels or [f"token {token}" for token in range(len(table))]
        if len(labels) != len(table):
            raise ValueError(f"labels must be one for each of the {len(table)} rows of logits, got {len(labels)}")
        rule = {"top_k": top_k, "score": score, "temperature": float(temperature), "renormalise": renormalise}
        super().__init__(logits=table, labels=labels, num_experts=num_experts, seed=seed, **rule)
        # Only now, or the seed would draw over the logits that were given.
        self.observe(self._draw_again, "seed")
        self.observe(self._fit_logits, "num_experts")
        self.observe(self._fit_num_experts, "logits")

    @property
    def routing(self) -> Routing:
        """What `route` makes of the widget's present state."""
        logits = torch.tensor(self.logits, dtype=torch.float64) / self.temperature
        return route(logits, self.top_k, score=self.score, renormalise=self.renormalise)

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here.

        Example:
            >>> RouteOneBatch([[1.0, 0.0]], top_k=1, score="sigmoid").summary()  # doctest: +NORMALIZE_WHITESPACE
            '1 token, top-1 of 2 experts by sigmoid: busiest expert 0 has 1 of 1 assignments, max over
            mean 2.00; expert 1 has none. First choices weigh 0.73 on average.'
        """
        routing = self.routing
        load, tokens = routing.load.tolist(), routing.tokens
        rule = SCORES[self.score] + (", renormalised" if self.renormalise else "")
        first = sum(routing.weights[:, 0].tolist()) / tokens
        return (
            f"{tokens} {'token' if tokens == 1 else 'tokens'}, top-{routing.slots} of {len(load)} experts "
            f"by {rule}: busiest expert {load.index(max(load))} has {max(load)} of {sum(load)} assignments, "
            f"max over mean {max(load) * len(load) / sum(load):.2f}; {name_idle(load)}. "
            f"First choices weigh {first:.2f} on average."
        )

    def __repr__(self) -> str:
        return f"RouteOneBatch: {self.summary()}"

    def _welcome(self, name: str, value: object) -> object:
        if name == "logits" and isinstance(value, list) and len(value) != len(self.labels):
            raise ValueError(f"logits must have a row for each of the {len(self.labels)} labels, got {len(value)}")
        return super()._welcome(name, value)

    @traitlets.validate("logits")
    def _check_logits(self, proposal):
        return as_table(proposal["value"])

    @traitlets.validate("top_k")
    def _check_top_k(self, proposal):
        check_range("top_k", proposal["value"], 1, min(8, self.num_experts))
        return proposal["value"]

    def _draw_again(self, _change):
        self.logits = draw_logits(self.seed, len(self.logits), self.num_experts)

    def _fit_logits(self, _change):
        self.top_k = min(self.top_k, self.num_experts)
        self.logits = resize_logits(self.logits, self.seed, self.num_experts)

    def _fit_num_experts(self, _change):
        self.num_experts = len(self.logits[0])


def check_range(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Refuse a number outside low..high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low}..{high}, got {value!r}")


def as_table(logits: Iterable) -> list[list[float]]:
    """Turn nested numbers, an array or a tensor into rows of floats; refuse what cannot be routed."""
    try:
        table = torch.as_tensor(logits, dtype=torch.float64)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"logits must be a table of numbers, tokens x experts: {problem}") from None
    if table.dim() != 2 or not table.shape[0] or not 2 <= table.shape[1] <= 64:
        raise ValueError(f"logits must be (tokens, experts) with 2 to 64 experts, got shape {tuple(table.shape)}")
    if not bool(table.isfinite().all()):
        raise ValueError(f"logits must be finite, got {table[~table.isfinite()][0].item()}")
    return table.tolist()


def name_idle(load: list[int]) -> str:
    """Name the experts with no load, or count them where they are more than four.

    Example:
        >>> name_idle([3, 0, 2, 0]), name_idle([1, 1])
        ('experts 1 and 3 have none', 'every expert has some')
    """
    idle = [str(expert) for expert, count in enumerate(load) if count == 0]
    if not idle:
        return "every expert has some"
    if len(idle) > 4:
        return f"{len(idle)} experts have none"
    if len(idle) == 1:
        return f"expert {idle[0]} has none"
    return f"experts {', '.join(idle[:-1])} and {idle[-1]} have none"


def uniform(seed: int, count: int) -> float:
    """Number ``count`` of the stream ``seed``, in 0..1: mulberry32, 32-bit arithmetic a browser has too."""
    state = (seed + (count + 1) * 0x6D2B79F5) & 0xFFFFFFFF
    mixed = ((state ^ state >> 15) * (state | 1)) & 0xFFFFFFFF
    mixed ^= (mixed + (mixed ^ mixed >> 7) * (mixed | 61)) & 0xFFFFFFFF
    return (mixed ^ mixed >> 14) / 2**32


def draw_logit(seed: int, token: int, expert: int) -> float:
    """One normal number of two decimals (Box and Muller), which depends on its place and not on the table's size."""
    count = 2 * (64 * token + expert)
    normal = math.sqrt(-2 * math.log(1 - uniform(seed, count))) * math.cos(2 * math.pi * uniform(seed, count + 1))
    return math.floor(100 * normal + 0.5) / 100


def draw_logits(seed: int, tokens: int, num_experts: int) -> list[list[float]]:
    """A table of drawn logits.

    Example:
        >>> draw_logits(0, 2, 2) == [row[:2] for row in draw_logits(0, 3, 4)[:2]]
        True
    """
    return [[draw_logit(seed, token, expert) for expert in range(num_experts)] for token in range(tokens)]


def resize_logits(logits: list[list[float]], seed: int, num_experts: int) -> list[list[float]]:
    """Cut the columns above num_experts, or draw those that are missing; the others keep their values."""
    return [
        [*row[:num_experts], *(draw_logit(seed, token, expert) for expert in range(len(row), num_experts))]
        for token, row in enumerate(logits)
    ]
