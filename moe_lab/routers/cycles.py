"""From exactly even to the optimum: exchange assignments around cycles of experts until none gains."""

import math

import numpy as np
from jaxtyping import Bool, Float, Int


class Exchanges:
    """The cheapest exchange from every expert to every other, kept up to date while assignments move.

    ``cost[a, b]`` is what the total score loses when the best-suited token moves from expert a to expert b. Where the
    even share is no whole number, an expert with one assignment less than another may also take over that one: a move
    of cost 0 that no token makes. An even assignment is optimal exactly if no cycle of moves has a negative cost.
    """

    def __init__(self, scores: Float[np.ndarray, "tokens num_experts"], chosen: Bool[np.ndarray, "tokens num_experts"]):
        self.scores, self.chosen = scores, chosen.copy()
        num_experts = scores.shape[1]
        self.moves = np.full((num_experts, num_experts), np.inf)
        self.mover = np.full((num_experts, num_experts), -1)
        self.load = chosen.sum(axis=0)
        for expert in range(num_experts):
            self._find_movers(expert, np.arange(num_experts))

    @property
    def cost(self) -> Float[np.ndarray, "num_experts num_experts"]:
        """Of the cheaper kind of move."""
        return np.where(self.load[:, None] < self.load, np.minimum(self.moves, 0.0), self.moves)

    def apply(self, cycle: list[int]) -> None:
        """Move along the cycle a -> b -> ... -> a."""
        hops = [(a, b) for a, b in _steps(cycle) if not (self.load[a] < self.load[b] and self.moves[a, b] >= 0)]
        moved = [(a, b, int(self.mover[a, b])) for a, b in hops]
        for a, b, token in moved:
            self.chosen[token, a], self.chosen[token, b] = False, True
            self.load[a] -= 1
            self.load[b] += 1
        for token in dict.fromkeys(token for _, _, token in moved):
            holds = self.chosen[token]
            lost = (self.mover == token) & ~(holds[:, None] & ~holds)
            for expert in np.flatnonzero(lost.any(axis=1)).tolist():
                self._find_movers(expert, np.flatnonzero(lost[expert]))
            held, free = np.flatnonzero(holds), np.flatnonzero(~holds)
            block = np.ix_(held, free)
            offer = self.scores[token, held][:, None] - self.scores[token, free]
            cheaper = offer < self.moves[block]
            self.moves[block] = np.where(cheaper, offer, self.moves[block])
            self.mover[block] = np.where(cheaper, token, self.mover[block])

    def _find_movers(self, expert: int, others: Int[np.ndarray, " others"]) -> None:
        """Look through all tokens of an expert for the one that moves to each of the others at the least cost."""
        tokens = np.flatnonzero(self.chosen[:, expert])
        self.moves[expert, others], self.mover[expert, others] = np.inf, -1
        if len(tokens):
            rows = np.ix_(tokens, others)
            loss = self.scores[tokens, expert][:, None] - self.scores[rows]
            loss[self.chosen[rows]] = np.inf
            first = loss.argmin(axis=0)
            least = loss[first, np.arange(len(others))]
            self.moves[expert, others] = least
            self.mover[expert, others] = np.where(np.isfinite(least), tokens[first], -1)


def cancel_cycles(
    scores: Float[np.ndarray, "tokens num_experts"],
    chosen: Bool[np.ndarray, "tokens num_experts"],
    prices: Float[np.ndarray, " num_experts"],
    excess_cost: float = math.inf,
    enough: float | int = 0.0,
    at_most: float | int = math.inf,
) -> tuple[Bool[np.ndarray, "tokens num_experts"], Float[np.ndarray, " num_experts"], int]:
    """Improve an even assignment until it is the best, or until what ``excess_cost`` bounds has sunk to ``enough``, or
    after about ``at_most`` cycles.

    Every exchange raises the total score, so they end. Returns the mask, the prices (optimal ones at the end: then the
    dual equals the score), and the number of cycles.

    Source: Klein 1967, cycle cancelling; Cherkassky and Goldberg 1999, cycles among the parents.
    """
    exchanges, labels, cancelled = Exchanges(scores, chosen), -prices.astype(np.float64), 0
    while excess_cost > enough and cancelled < at_most:
        cycles = find_cycles(exchanges, labels)
        gains = []
        for cycle in cycles:
            gains.append(-sum(exchanges.cost[a, b] for a, b in _steps(cycle)))
            if gains[-1] > 0:
                exchanges.apply(cycle)
        if not cycles or max(gains) <= 0:  # the optimum, or no more than rounding away from it
            break
        excess_cost -= sum(gains)
        cancelled += len(cycles)
    return exchanges.chosen, -labels, cancelled


def find_cycles(exchanges: Exchanges, labels: Float[np.ndarray, " num_experts"]) -> list[list[int]]:
    """Lower the labels, in place, along edges a -> b until label[b] <= label[a] + cost[a, b]; or find cycles that gain.

    Bellman-Ford; labels that hardly need to change, as near-optimal prices give, take few rounds. Empty where the
    labels came to rest: then they are optimal prices, negated.
    """
    cost = exchanges.cost
    grain = 1e-13 * len(labels) * float(np.abs(exchanges.scores).max(initial=0.0))  # what rounding makes of equals
    num_experts = len(labels)
    parent = np.full(num_experts, -1)
    while True:
        through = labels[:, None] + cost
        source = through.argmin(axis=0)
        reached = through[source, np.arange(num_experts)]
        better = reached < labels - grain
        if not better.any():
            return []
        labels[better], parent[better] = reached[better], source[better]
        if cycles := cycles_among(parent):
            return cycles


def cycles_among(parent: Int[np.ndarray, " num_experts"]) -> list[list[int]]:
    """The cycles of a graph in which every node has one parent or, at -1, none; each from parent to child.

    Example:
        >>> cycles_among(np.array([2, 0, 1, -1, 3]))
        [[0, 1, 2]]
    """
    num_experts = len(parent)
    ahead = np.append(np.where(parent < 0, num_experts, parent), num_experts)
    for _ in range(num_experts.bit_length()):
        ahead = ahead[ahead]  # twice as far; who then still walks, walks in circles
    cycles, seen = [], set()
    for start in np.unique(ahead[ahead < num_experts]).tolist():
        walk, node = [], start
        while node not in seen:
            seen.add(node)
            walk.append(node)
            node = int(parent[node])
        if walk:
            cycles.append(walk[:1] + walk[:0:-1])
    return cycles


def _steps(cycle: list[int]) -> list[tuple[int, int]]:
    return list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
