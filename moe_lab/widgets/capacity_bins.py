"""Capacity bins: experts with a fixed number of places, whom they turn away, and what they leave empty."""

import math
from pathlib import Path

import torch
import traitlets

from moe_lab.checks import check_number, check_whole
from moe_lab.routers import expert_capacity, route
from moe_lab.routers.capacity import OVERFLOWS, PRIORITIES
from moe_lab.types import Routing
from moe_lab.widgets.lab_widget import LabWidget
from moe_lab.widgets.route_one_batch import check_range, uniform

MOST_TOKENS, MOST_EXPERTS, MOST_TOP_K = 64, 16, 4


class CapacityBins(LabWidget):
    """Show which tokens find a place where every expert has only so many, and let the reader change the rule.

    The rule is the router "capacity_top_k": ``capacity_factor``, ``overflow`` and ``priority`` are its own. Logits are
    drawn from ``seed``, the same numbers in the browser as here: Gumbel noise - skew * log(expert + 1). So the
    first choices fall on expert e with a probability in proportion to 1 / (e + 1)^skew, Zipf's law, and the later
    ones likewise among the experts that are left.

    Example:
        >>> CapacityBins(seed=3)  # doctest: +NORMALIZE_WHITESPACE
        CapacityBins: Capacity factor 1.25, 10 places an expert: 5 of 48 assignments dropped, 17 of 60 places empty;
        late tokens (the last third) lost 3 of 5.

    Raises ValueError or TypeError for tokens outside 8..64, num_experts outside 2..16, top_k outside 1..4 or above
    num_experts, capacity_factor outside 0.5..3, skew outside 0..2, a seed outside 0..2147483647, and an unknown
    overflow or priority.
    """

    _esm = Path(__file__).with_name("capacity_bins.js")
    _css = Path(__file__).with_name("capacity_bins.css")
    of_the_reader = ("tokens", "num_experts", "top_k", "capacity_factor", "skew", "overflow", "priority", "seed")

    tokens = traitlets.Int(24, min=8, max=MOST_TOKENS).tag(sync=True)
    num_experts = traitlets.Int(6, min=2, max=MOST_EXPERTS).tag(sync=True)
    top_k = traitlets.Int(2, min=1, max=MOST_TOP_K).tag(sync=True)
    capacity_factor = traitlets.Float(1.25, min=0.5, max=3.0).tag(sync=True)
    skew = traitlets.Float(1.0, min=0.0, max=2.0).tag(sync=True)
    overflow = traitlets.Enum(OVERFLOWS, "drop").tag(sync=True)
    priority = traitlets.Enum(PRIORITIES, "order").tag(sync=True)
    seed = traitlets.Int(0, min=0, max=2**31 - 1).tag(sync=True)

    def __init__(
        self,
        tokens: int = 24,
        num_experts: int = 6,
        top_k: int = 2,
        capacity_factor: float | int = 1.25,
        skew: float | int = 1.0,
        overflow: str = "drop",
        priority: str = "order",
        seed: int = 0,
    ):
        sizes = {
            "tokens": check_whole("tokens", tokens, 8, MOST_TOKENS),
            "num_experts": check_whole("num_experts", num_experts, 2, MOST_EXPERTS),
            "top_k": check_whole("top_k", top_k, 1, min(MOST_TOP_K, num_experts)),
            "seed": check_whole("seed", seed, 0, 2**31 - 1),
        }
        for name, value, low, high in (("capacity_factor", capacity_factor, 0.5, 3), ("skew", skew, 0, 2)):
            check_range(name, check_number(name, value), low, high)
        for name, value, allowed in (("overflow", overflow, OVERFLOWS), ("priority", priority, PRIORITIES)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        rule = {"capacity_factor": float(capacity_factor), "overflow": overflow, "priority": priority}
        super().__init__(**sizes, **rule, skew=float(skew))
        self.observe(self._fit_top_k, "num_experts")

    @property
    def logits(self) -> torch.Tensor:
        """The drawn router logits, float64 (tokens, num_experts)."""
        return torch.tensor(draw_logits(self.seed, self.tokens, self.num_experts, self.skew), dtype=torch.float64)

    @property
    def routing(self) -> Routing:
        """What `route` makes of the widget's present state.

        For "random" the tokens are put into the drawn order here, because a browser has no torch.Generator, and the
        router serves them as they come.
        """
        drawn = self.priority == "random"
        order = torch.tensor(draw_order(self.seed, self.tokens) if drawn else range(self.tokens))
        rule = {"overflow": self.overflow, "priority": "order" if drawn else self.priority}
        rule["capacity_factor"] = self.capacity_factor
        routing, back = route(self.logits[order], self.top_k, "capacity_top_k", **rule), order.argsort()
        return Routing(routing.experts[back], routing.weights[back], self.num_experts)

    def count(self) -> dict[str, int]:
        """What the widget counts.

        ``capacity`` (places an expert), ``asked`` (assignments), ``dropped``, ``rerouted``, ``places`` (of all
        experts), ``empty`` (places, the padding), and ``early`` and ``late``: how many of the dropped belonged to the
        first and to the last third of the tokens, which are tokens // 3 each.

        Example:
            >>> found = CapacityBins(tokens=8, num_experts=2, top_k=2, capacity_factor=0.5).count()
            >>> found["capacity"], found["asked"], found["dropped"], found["places"], found["empty"], found["late"]
            (4, 16, 8, 8, 0, 4)
        """
        experts, first_wish = self.routing.experts, route(self.logits, self.top_k).experts
        capacity = expert_capacity(self.capacity_factor, self.tokens, self.top_k, self.num_experts)
        empty_slots, third = experts < 0, self.tokens // 3
        places = capacity * self.num_experts
        return {
            "capacity": capacity,
            "asked": experts.numel(),
            "dropped": int(empty_slots.sum()),
            "rerouted": int(((experts != first_wish) & ~empty_slots).sum()),
            "places": places,
            "empty": places - int((~empty_slots).sum()),
            "early": int(empty_slots[:third].sum()),
            "late": int(empty_slots[-third:].sum()),
        }

    def summary(self) -> str:
        """The sentence that the widget reads out, computed here."""
        found = self.count()
        lost = f"{found['dropped']} of {found['asked']} assignments dropped"
        if self.overflow == "reroute":
            lost = f"{found['rerouted']} of {found['asked']} assignments rerouted and {found['dropped']} dropped"
        late = f"; late tokens (the last third) lost {found['late']} of {found['dropped']}" if found["dropped"] else ""
        return (
            f"Capacity factor {self.capacity_factor:.2f}, {found['capacity']} "
            f"{'place' if found['capacity'] == 1 else 'places'} an expert: {lost}, "
            f"{found['empty']} of {found['places']} places empty{late}."
        )

    def __repr__(self) -> str:
        return f"CapacityBins: {self.summary()}"

    @traitlets.validate("top_k")
    def _check_top_k(self, proposal):
        return check_whole("top_k", proposal["value"], 1, min(MOST_TOP_K, self.num_experts))

    def _fit_top_k(self, _change):
        self.top_k = min(self.top_k, self.num_experts)


def draw_logits(seed: int, tokens: int, num_experts: int, skew: float | int) -> list[list[float]]:
    """Gumbel noise - skew * log(expert + 1), in steps of 1/4096.

    The steps are powers of two, so that differences are exact and ties are ties in both languages, whose logarithms
    differ in the last bit. The noise depends on its place and not on the table's size.

    Example:
        >>> few, many = draw_logits(0, 2, 2, 0.5), draw_logits(0, 3, 4, 0.5)
        >>> few == [row[:2] for row in many[:2]]
        True
    """
    table = []
    for token in range(tokens):
        chances = [uniform(seed, MOST_EXPERTS * token + expert) + 2**-33 for expert in range(num_experts)]  # in 0..1
        values = [-math.log(-math.log(chance)) - skew * math.log(rank) for rank, chance in enumerate(chances, 1)]
        table.append([math.floor(4096 * value + 0.5) / 4096 for value in values])
    return table


def draw_order(seed: int, tokens: int) -> list[int]:
    """The tokens in an order drawn from the numbers that follow those of the logits.

    Example:
        >>> sorted(draw_order(0, 8))
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return sorted(range(tokens), key=lambda token: uniform(seed, MOST_EXPERTS * MOST_TOKENS + token))
