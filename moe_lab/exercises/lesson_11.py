"""Exercises of lesson 11: copies of a token, bytes between ranks, packing, the slowest rank, wrong gradients."""

import itertools
import math
import random
from collections.abc import Sequence

import torch

from moe_lab.exercises import Exercise, Property
from moe_lab.parallel.clusters import Cluster, Link
from moe_lab.parallel.placement import pack
from moe_lab.parallel.simulator import exchange_time
from moe_lab.parallel.traffic import count_traffic
from moe_lab.types import Routing

# ---------------------------------------------------------------- 11.1: copies of a token


def mean_copies(num_experts: int, top_k: int, ranks: int) -> float:
    """Ranks that have any of top_k different experts, drawn by fair lots: the mean, from the hypergeometric law."""
    held = num_experts // ranks
    missed = math.comb(num_experts - held, top_k) / math.comb(num_experts, top_k)
    return ranks * (1 - missed)


def _copies(num_experts: int, top_k: int, ranks: int, spec: float | int | None = None) -> Property:
    def holds(answer) -> str | None:
        yours, wanted = answer(num_experts, top_k, ranks), spec
        wanted = mean_copies(num_experts, top_k, ranks) if wanted is None else wanted
        return None if math.isclose(yours, wanted, rel_tol=1e-9) else f"yours {yours:.6g}, spec {wanted:.6g}"

    return holds


def _by_listing(answer) -> str | None:
    """Small cases, where every choice of experts can be written down."""
    for num_experts, top_k, ranks in ((4, 2, 2), (6, 3, 3), (8, 3, 4), (6, 4, 2), (9, 2, 3)):
        held = num_experts // ranks
        choices = list(itertools.combinations(range(num_experts), top_k))
        wanted = sum(len({expert // held for expert in choice}) for choice in choices) / len(choices)
        if (fault := _copies(num_experts, top_k, ranks, wanted)(answer)) is not None:
            return f"{num_experts} experts, top-{top_k}, {ranks} ranks: {fault}"
    return None


# ---------------------------------------------------------------- 11.2: bytes between ranks

Choices = list[list[list[int]]]
"""Experts of each token of each rank, -1 for an empty slot."""


def forward_bytes(choices: Choices, num_experts: int, d_model: int) -> list[list[int]]:
    """Dispatch and combine from each rank to each rank, bfloat16 tokens and float32 weights, by the cost model."""
    slots = max(len(token) for rank in choices for token in rank)
    tables = [torch.tensor(rank, dtype=torch.int64).view(-1, slots) for rank in choices]
    routings = [Routing(table, (table >= 0).float(), num_experts) for table in tables]
    traffic = count_traffic(routings, len(choices), d_model, torch.bfloat16)
    return (traffic.dispatch + traffic.combine).tolist()


def _sends(choices: Choices, num_experts: int, d_model: int, spec: list[list[int]] | None = None) -> Property:
    def holds(answer) -> str | None:
        wanted = forward_bytes(choices, num_experts, d_model) if spec is None else spec
        yours = answer([[list(token) for token in rank] for rank in choices], num_experts, d_model)
        if len(yours) != len(wanted) or any(len(row) != len(wanted) for row in yours):
            return f"give {len(wanted)} rows of {len(wanted)} numbers"
        for sender, receiver in itertools.product(range(len(wanted)), repeat=2):
            found, value = yours[sender][receiver], wanted[sender][receiver]
            if found != value:
                return f"from rank {sender} to rank {receiver}: yours {found}, spec {value}"
        return None

    return holds


def _drawn_choices(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(15):
        ranks, held, slots = draw.randint(2, 4), draw.randint(2, 4), draw.randint(1, 3)
        tokens = [draw.randint(0, 6) for _ in range(ranks - 1)] + [draw.randint(1, 6)]
        experts = range(ranks * held)
        choices = [[draw.sample(experts, slots) for _ in range(count)] for count in tokens]
        for token in itertools.chain(*choices):
            if draw.random() < 0.3:
                token[-1] = -1
        if (fault := _sends(choices, ranks * held, draw.randint(1, 64))(answer)) is not None:
            return f"drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 11.3: packing experts


def _packs(loads: list[float | int], num_packs: int, spec: list[list[int]] | None = None) -> Property:
    def holds(answer) -> str | None:
        wanted = pack(loads, num_packs) if spec is None else spec
        yours = [list(one) for one in answer(list(loads), num_packs)]
        return None if yours == wanted else f"yours {yours}, spec {wanted}"[:220]

    return holds


def _drawn_packs(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(40):
        num_packs, size = draw.randint(1, 5), draw.randint(2, 5)  # with one item a pack `pack` moves none
        loads = [draw.choice([draw.randint(0, 9), draw.randint(0, 999)]) for _ in range(num_packs * size)]
        if (fault := _packs(loads, num_packs)(answer)) is not None:
            return f"loads {loads}: {fault}"[:300]
    return None


# ---------------------------------------------------------------- 11.4: the slowest rank

Sent = list[list[int]]


def layer_ms(sent: Sent, rows: list[int], gigabytes_per_s: float | int, rows_per_ms: float | int, overlap: float | int):
    """There, experts, and back the same bytes the other way: by `exchange_time` on links without latency."""
    link = Link("of the exercise", float(gigabytes_per_s), 0.0, "of the exercise")
    cluster = Cluster("of the exercise", len(sent), len(sent), link, None, None, "of the exercise")
    ways = torch.tensor(sent), torch.tensor(sent).T
    exchange, experts = sum(exchange_time(way, cluster).ms for way in ways), max(rows) / rows_per_ms
    return exchange + experts - overlap * min(exchange, experts)


def _takes(
    sent: Sent, rows: list[int], rate: float | int, per_ms: float | int, overlap: float | int, spec: float | int
) -> Property:
    def holds(answer) -> str | None:
        yours = answer([list(row) for row in sent], list(rows), rate, per_ms, overlap)
        return None if math.isclose(yours, spec, rel_tol=1e-9) else f"yours {yours:.6g} ms, spec {spec:.6g}"

    return holds


def _drawn_steps(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(30):
        ranks = draw.randint(2, 6)
        sent = [[draw.randint(0, 10**8) for _ in range(ranks)] for _ in range(ranks)]
        rows = [draw.randint(0, 9999) for _ in range(ranks)]
        given = (sent, rows, draw.uniform(1, 900), draw.uniform(10, 9000), draw.choice([0, 0.5, 1, draw.random()]))
        if (fault := _takes(*given, layer_ms(*given))(answer)) is not None:
            return f"drawn by chance, {ranks} ranks, overlap {given[-1]:.2f}: {fault}"
    return None


EVEN = [[0, 10**8], [10**8, 0]]
ONE_WAY = [[0, 3 * 10**8], [10**8, 0]]
HOT_RECEIVER = [[0, 0, 10**8], [0, 0, 10**8], [10**7, 10**7, 0]]

# ---------------------------------------------------------------- 11.5: what is wrong with these gradients

LAYER = ["counts", "dispatch", "combine", "combine gradients", "token gradients", "average"]
"""Collectives of one layer's step, in order."""


def make_report(ranks: int = 4, **changes: object) -> dict[str, object]:
    """A report of a healthy step: collectives by rank, and gradients over those of one process."""
    report = {"calls": [list(LAYER) for _ in range(ranks)], "experts": 1.0, "router": [1.0] * ranks}
    return report | changes


def _skips(rank: int, *names: str, ranks: int = 4) -> list[list[str]]:
    """Calls of which one rank leaves some out."""
    return [[name for name in LAYER if one != rank or name not in names] for one in range(ranks)]


def _finds(spec: list[str], ranks: int = 4, **changes: object) -> Property:
    def holds(answer) -> str | None:
        yours = answer(make_report(ranks, **changes))
        return None if isinstance(yours, Sequence) and list(yours) == spec else f"yours {yours!r}, spec {spec}"

    return holds


def _any_ranks(answer) -> str | None:
    for ranks in (2, 3, 8, 16):
        for experts, fault in ((float(ranks), "experts not divided"), (1 / ranks, "experts divided twice")):
            for factor in (1.0, 1.004):
                said = _finds([fault], ranks, experts=experts * factor)(answer)
                if said is not None:
                    return f"{ranks} ranks, experts' gradients times {experts * factor:.4g}: {said}"
    return None


EXERCISES = {
    "11.1": Exercise(
        "Predict the copies of a token",
        {
            "two different experts, one a rank": _copies(8, 2, 8, 2),
            "one rank": _copies(8, 3, 1, 1),
            "top-1": _copies(64, 1, 8, 1),
            "all experts": _copies(16, 16, 4, 4),
            "four experts on two ranks, top-2": _copies(4, 2, 2, 5 / 3),
            "DeepSeek-V3 on one node": _copies(256, 8, 8),
            "DeepSeek-V3 on 64 ranks": _copies(256, 8, 64),
            "every choice, listed": _by_listing,
        },
        hints=(
            "Look at one rank. How likely is it that none of the token's experts lies there? All ranks are alike, and "
            "means add up.",
            "A rank holds h = num_experts / ranks. A token misses it if all top_k experts are among the other "
            "num_experts - h: comb(num_experts - h, top_k) of comb(num_experts, top_k) choices (math.comb).",
            "\n    import math\n"
            "    held = num_experts // ranks\n"
            "    missed = math.comb(num_experts - held, top_k) / math.comb(num_experts, top_k)\n"
            "    return ranks * (1 - missed)",
        ),
    ),
    "11.2": Exercise(
        "Count the bytes between ranks",
        {
            "one token to the other rank": _sends([[[2]], []], 4, 10, [[0, 28], [20, 0]]),
            "two experts on one rank are one copy": _sends([[[2, 3]], []], 4, 10, [[0, 36], [20, 0]]),
            "an empty slot costs its place": _sends([[[2, -1]], []], 4, 10, [[0, 36], [20, 0]]),
            "what stays is counted, too": _sends([[[0]], []], 4, 10, [[48, 0], [0, 0]]),
            "a token without an expert": _sends([[[-1], [3]], [[-1]]], 4, 10, [[0, 28], [20, 0]]),
            "to both ranks": _sends([[[1, 2]], [[0, 1]]], 4, 1, [[20, 20], [20, 0]]),
            "many, drawn by chance": _drawn_choices,
        },
        hints=(
            "Expert e lies on rank e // (num_experts / ranks). For each token make the *set* of its ranks: each gets "
            "one copy, and answers with one row.",
            "A copy there: 2 * d_model bytes, and 4 + 4 for every slot of the routing, empty or not. An answer, the "
            "other way round: 2 * d_model. The diagonal gets both.",
            "\n    ranks = len(choices)\n"
            "    held = num_experts // ranks\n"
            "    sent = [[0] * ranks for _ in range(ranks)]\n"
            "    for rank, tokens in enumerate(choices):\n"
            "        for experts in tokens:\n"
            "            for to in {expert // held for expert in experts if expert >= 0}:\n"
            "                sent[rank][to] += 2 * d_model + 8 * len(experts)\n"
            "                sent[to][rank] += 2 * d_model\n"
            "    return sent",
        ),
    ),
    "11.3": Exercise(
        "Pack experts onto devices",
        {
            "the example": _packs([1, 5, 4, 3], 2, [[1, 0], [2, 3]]),
            "a full device takes no more": _packs([9, 1, 1, 1], 2, [[0, 3], [1, 2]]),
            "one device": _packs([2, 3, 1], 1, [[1, 0, 2]]),
            "equal loads: lower numbers first": _packs([2, 2, 2, 2], 2, [[0, 2], [1, 3]]),
            "three devices": _packs([10, 7, 6, 5, 4, 1], 3, [[0, 5], [1, 4], [2, 3]]),
            "nothing is load too": _packs([0, 0, 3, 0], 2, [[2, 3], [0, 1]]),
            "many, drawn by chance": _drawn_packs,
        },
        hints=(
            "Go through the experts from the heaviest to the lightest. Which device should take the next one, and "
            "which may not?",
            "Each device has room for len(loads) / num_packs. Of those with room take the one with the smallest sum so "
            "far, of equal ones the lower number; min() does that if you give it (sum, number). sorted() is stable.",
            "\n    size, packs = len(loads) // num_packs, [[] for _ in range(num_packs)]\n"
            "    for item in sorted(range(len(loads)), key=lambda item: -loads[item]):\n"
            "        free = [p for p in range(num_packs) if len(packs[p]) < size]\n"
            "        packs[min(free, key=lambda p: (sum(loads[i] for i in packs[p]), p))].append(item)\n"
            "    return packs",
        ),
    ),
    "11.4": Exercise(
        "Time a layer by its slowest rank",
        {
            "even": _takes(EVEN, [1000, 1000], 50, 1000, 0, 2 + 2 + 1),
            "the busiest computes longest": _takes(EVEN, [500, 3000], 50, 1000, 0, 2 + 2 + 3),
            "both directions at once, the longer counts": _takes(ONE_WAY, [1000, 1000], 50, 1000, 0, 6 + 6 + 1),
            "a hot receiver": _takes(HOT_RECEIVER, [0, 0, 2000], 50, 1000, 0, 4 + 4 + 2),
            "what a rank keeps is free": _takes([[10**9, 0], [0, 10**9]], [10, 20], 50, 10, 0, 2),
            "full overlap: the longer of the two": _takes(EVEN, [1000, 3000], 50, 1000, 1, 4),
            "half of the shorter hides": _takes(EVEN, [1000, 3000], 50, 1000, 0.5, 4 + 3 - 1.5),
            "many, drawn by chance": _drawn_steps,
        },
        hints=(
            "Three things follow each other: there, experts, back. For each, who is last? Everybody waits for it.",
            "A rank's exchange: max(sum of its row, sum of its column), without the diagonal, over gigabytes_per_s * "
            "1e6 bytes a ms. Back is the transpose: the same maximum. Then exchange + experts - overlap * min of both.",
            "\n    ranks = range(len(sent))\n"
            "    out = [sum(sent[r][to] for to in ranks if to != r) for r in ranks]\n"
            "    into = [sum(sent[at][r] for at in ranks if at != r) for r in ranks]\n"
            "    exchange = 2 * max(out + into) / (gigabytes_per_s * 1e6)\n"
            "    experts = max(rows) / rows_per_ms\n"
            "    return exchange + experts - overlap * min(exchange, experts)",
        ),
    ),
    "11.5": Exercise(
        "Diagnose a step on several ranks",
        {
            "nothing is wrong": _finds([]),
            "a rank without tokens returned early": _finds(["hang"], calls=_skips(2, *LAYER[1:5])),
            "a fresh tensor cut the backward pass": _finds(["hang"], calls=_skips(0, *LAYER[3:5])),
            "the same calls in another order": _finds(
                ["hang"], calls=[LAYER, LAYER, [LAYER[0], LAYER[2], LAYER[1], *LAYER[3:]], LAYER]
            ),
            "all ranks skip the same": _finds([], calls=[LAYER[:3]] * 4),
            "experts four times too large": _finds(["experts not divided"], experts=4.0),
            "experts a quarter": _finds(["experts divided twice"], experts=0.25),
            "one rank has nothing to divide": _finds([], ranks=1),
            "each rank kept its own router gradient": _finds(["router not averaged"], router=[1.3, 0.8, 1.1, 0.8]),
            "one rank only": _finds(["router not averaged"], router=[1.0, 1.0, 1.0, 1.2]),
            "rounding is no fault": _finds([], experts=1.0000004, router=[1.0, 0.9999997, 1.0, 1.0]),
            "all at once": _finds(
                ["hang", "experts not divided", "router not averaged"],
                calls=_skips(1, "average"),
                experts=4.0,
                router=[1.0, 2.0, 1.0, 1.0],
            ),
            "any number of ranks": _any_ranks,
        },
        hints=(
            "Go through the four names. For which do you compare ranks with each other, for which with one process?",
            "hang: the lists of calls are not all equal. With n = len(calls) > 1: not divided if experts is n within "
            "1%, divided twice if it is 1 / n. router not averaged: any of its ratios is further than 1% from 1.",
            "\n    calls, n = report['calls'], len(report['calls'])\n"
            "    near = lambda found, wanted: abs(found / wanted - 1) < 0.01\n"
            "    faults = {\n"
            "        'hang': any(list(one) != list(calls[0]) for one in calls),\n"
            "        'experts not divided': n > 1 and near(report['experts'], n),\n"
            "        'experts divided twice': n > 1 and near(report['experts'], 1 / n),\n"
            "        'router not averaged': not all(near(one, 1) for one in report['router']),\n"
            "    }\n"
            "    return [name for name, is_so in faults.items() if is_so]",
        ),
    ),
}
