"""Answers to the exercises of lesson 11: right ones, and wrong ones that must be refused with a reason."""

import math

ARGUMENTS = {
    "11.1": "num_experts, top_k, ranks",
    "11.2": "choices, num_experts, d_model",
    "11.3": "loads, num_packs",
    "11.4": "sent, rows, gigabytes_per_s, rows_per_ms, overlap",
    "11.5": "report",
}


def copies(num_experts, top_k, ranks):
    held = num_experts // ranks
    return ranks * (1 - math.comb(num_experts - held, top_k) / math.comb(num_experts, top_k))


def sending(
    *,
    once=set,
    there=lambda d_model, experts: 2 * d_model + 8 * len(experts),
    back=lambda d_model, experts: 2 * d_model,
    own=True,
    crossed=False,
    empty=lambda expert: expert >= 0,
    held=lambda num_experts, ranks: num_experts // ranks,
):
    """Bytes from rank to rank, with each of their parts to replace."""

    def answer(choices, num_experts, d_model):
        ranks = len(choices)
        size = held(num_experts, ranks)
        sent = [[0] * ranks for _ in range(ranks)]
        for rank, tokens in enumerate(choices):
            for experts in tokens:
                for to in once([expert // size for expert in experts if empty(expert)]):
                    if to != rank or own:
                        first, second = (to, rank) if crossed else (rank, to)
                        sent[first][second] += there(d_model, experts)
                        sent[second][first] += back(d_model, experts)
        return sent

    return answer


def packing(*, order=lambda loads: sorted(range(len(loads)), key=lambda item: -loads[item]), room=True, choose=None):
    """Items one by one into packs, with the order, the room and the choice to replace."""

    def lightest(packs, loads, free):
        return min(free, key=lambda one: (sum(loads[item] for item in packs[one]), one))

    def answer(loads, num_packs):
        size, packs = len(loads) // num_packs, [[] for _ in range(num_packs)]
        for item in order(loads):
            free = [one for one in range(num_packs) if not room or len(packs[one]) < size]
            packs[(choose or lightest)(packs, loads, free)].append(item)
        return packs

    return answer


def timing(
    *,
    of_rank=max,
    of_ranks=max,
    experts=max,
    ways=2,
    kept=False,
    together=lambda exchange, experts, overlap: exchange + experts - overlap * min(exchange, experts),
    scale=1e6,
):
    """A layer's time, with each of its parts to replace."""

    def answer(sent, rows, gigabytes_per_s, rows_per_ms, overlap):
        ranks = range(len(sent))
        out = [sum(sent[rank][to] for to in ranks if kept or to != rank) for rank in ranks]
        into = [sum(sent[at][rank] for at in ranks if kept or at != rank) for rank in ranks]
        slowest = of_ranks([of_rank(pair) for pair in zip(out, into, strict=True)])
        return together(ways * slowest / (gigabytes_per_s * scale), experts(rows) / rows_per_ms, overlap)

    return answer


def mean(values):
    return sum(values) / len(values)


def near(found, wanted):
    return abs(found / wanted - 1) < 0.01


def doctor(
    *,
    hangs=lambda calls: any(list(one) != list(calls[0]) for one in calls),
    larger=lambda experts, n: n > 1 and near(experts, n),
    smaller=lambda experts, n: n > 1 and near(experts, 1 / n),
    differs=lambda router: not all(near(one, 1) for one in router),
):
    """What is wrong with a step, with each of the looks to replace."""

    def answer(report):
        n = len(report["calls"])
        faults = {
            "hang": hangs(report["calls"]),
            "experts not divided": larger(report["experts"], n),
            "experts divided twice": smaller(report["experts"], n),
            "router not averaged": differs(report["router"]),
        }
        return [name for name, is_so in faults.items() if is_so]

    return answer


RIGHT = {"11.1": copies, "11.2": sending(), "11.3": packing(), "11.4": timing(), "11.5": doctor()}


# ---------------------------------------------------------------- the same answers, differently written


def copies_one_by_one(num_experts, top_k, ranks):
    """A rank is missed by the first expert, then by the second of those that are left, ..."""
    held, missed = num_experts / ranks, 1.0
    for drawn in range(top_k):
        missed *= max(0.0, num_experts - held - drawn) / (num_experts - drawn)
    return ranks - ranks * missed


def sending_by_pairs(choices, num_experts, d_model):
    """For each pair of ranks: the tokens that go there, and those that came from there."""
    ranks = len(choices)
    slots = max(len(token) for tokens in choices for token in tokens)

    def visits(rank, to):
        first, last = to * num_experts // ranks, (to + 1) * num_experts // ranks
        return sum(any(first <= expert < last for expert in token) for token in choices[rank])

    def row(rank):
        return [visits(rank, to) * (2 * d_model + 8 * slots) + visits(to, rank) * 2 * d_model for to in range(ranks)]

    return [row(rank) for rank in range(ranks)]


def packing_with_sums(loads, num_packs):
    """Sums are kept, full packs become infinitely heavy."""
    sums, packs = [0] * num_packs, [[] for _ in range(num_packs)]
    for load, item in sorted((-load, item) for item, load in enumerate(loads)):
        lightest = sums.index(min(sums))
        packs[lightest].append(item)
        sums[lightest] = sums[lightest] - load if len(packs[lightest]) * num_packs < len(loads) else math.inf
    return packs


def timing_by_ways(sent, rows, gigabytes_per_s, rows_per_ms, overlap):
    """There and back, each by itself."""
    total, ranks = 0.0, len(sent)
    for way in (sent, list(zip(*sent, strict=True))):
        out = max(sum(way[r]) - way[r][r] for r in range(ranks))
        into = max(sum(way[at][r] for at in range(ranks)) - way[r][r] for r in range(ranks))
        total += max(out, into) / gigabytes_per_s / 1e6
    longer, shorter = max(total, max(rows) / rows_per_ms), min(total, max(rows) / rows_per_ms)
    return longer + (1 - overlap) * shorter


def doctor_in_turn(report):
    """One look after the other."""
    found, n = [], len(report["router"])
    if len({tuple(one) for one in report["calls"]}) > 1:
        found.append("hang")
    if n > 1 and 0.99 * n < report["experts"] < 1.01 * n:
        found.append("experts not divided")
    if n > 1 and 0.99 < report["experts"] * n < 1.01:
        found.append("experts divided twice")
    if max(report["router"]) > 1.01 or min(report["router"]) < 0.99:
        found.append("router not averaged")
    return tuple(found)


ALSO_RIGHT = {
    "11.1": copies_one_by_one,
    "11.2": sending_by_pairs,
    "11.3": packing_with_sums,
    "11.4": timing_by_ways,
    "11.5": doctor_in_turn,
}


# ---------------------------------------------------------------- wrong answers

WRONG = {
    "11.1": {
        "a copy an expert": lambda num_experts, top_k, ranks: top_k,
        "at most a copy a rank": lambda num_experts, top_k, ranks: min(top_k, ranks),
        "one copy": lambda *_: 1,
        "experts may come twice": lambda num_experts, top_k, ranks: ranks * (1 - (1 - 1 / ranks) ** top_k),
        "one rank's chance": lambda *given: copies(*given) / given[2],
        "missed ranks": lambda *given: given[2] - copies(*given),
        "experts and ranks mixed up": lambda e, k, ranks: e * (1 - math.comb(e - ranks, k) / math.comb(e, k)),
        "one expert a rank": lambda e, k, ranks: ranks * (1 - math.comb(e - 1, k) / math.comb(e, k)),
        "all ranks": lambda num_experts, top_k, ranks: ranks,
        "rounded": lambda *given: round(copies(*given)),
        "without its own rank": lambda *given: copies(*given) * (given[2] - 1) / given[2],
    },
    "11.2": {
        "a copy an expert": sending(once=list),
        "no answers": sending(back=lambda d_model, experts: 0),
        "answers with labels": sending(back=lambda d_model, experts: 2 * d_model + 8 * len(experts)),
        "answers go on": sending(crossed=True),
        "no numbers of experts": sending(there=lambda d_model, experts: 2 * d_model + 4 * len(experts)),
        "labels of filled slots": sending(there=lambda d, experts: 2 * d + 8 * sum(e >= 0 for e in experts)),
        "one label": sending(there=lambda d_model, experts: 2 * d_model + 8),
        "float32 tokens": sending(there=lambda d, e: 4 * d + 8 * len(e), back=lambda d, e: 4 * d),
        "only what crosses": sending(own=False),
        "empty slots go to the last rank": sending(empty=lambda expert: True),
        "experts dealt in turn": lambda choices, num_experts, d_model: sending(held=lambda e, r: 1)(
            [[[e % len(choices) if e >= 0 else -1 for e in token] for token in rank] for rank in choices],
            num_experts,
            d_model,
        ),
        "one number": lambda *given: sum(map(sum, sending()(*given))),
    },
    "11.3": {
        "as they come": packing(order=lambda loads: range(len(loads))),
        "lightest first": packing(order=lambda loads: sorted(range(len(loads)), key=lambda item: loads[item])),
        "no limit to the room": packing(room=False),
        "in turn": packing(choose=lambda packs, loads, free: min(free, key=lambda one: (len(packs[one]), one))),
        "fill one after the other": packing(choose=lambda packs, loads, free: free[0]),
        "the heaviest pack": packing(
            choose=lambda packs, loads, free: max(free, key=lambda one: sum(loads[item] for item in packs[one]))
        ),
        "the last of equal packs": packing(
            choose=lambda packs, loads, free: min(free, key=lambda one: (sum(loads[i] for i in packs[one]), -one))
        ),
        "higher numbers first": packing(
            order=lambda loads: sorted(range(len(loads)), key=lambda item: (-loads[item], -item))
        ),
        "blocks": lambda loads, n: [list(range(p * len(loads) // n, (p + 1) * len(loads) // n)) for p in range(n)],
        "loads instead of numbers": lambda loads, n: [[loads[item] for item in one] for one in packing()(loads, n)],
        "sorted inside": lambda loads, n: [sorted(one) for one in packing()(loads, n)],
        "sums": lambda loads, n: [[sum(loads[item] for item in one)] for one in packing()(loads, n)],
    },
    "11.4": {
        "the mean rank's exchange": timing(of_ranks=mean),
        "the mean rank's experts": timing(experts=mean),
        "all ranks' bytes": timing(of_ranks=sum),
        "both directions in turn": timing(of_rank=sum),
        "only what is sent, one way for both": timing(of_rank=lambda pair: pair[0]),
        "one way": timing(ways=1),
        "what stays crosses too": timing(kept=True),
        "never an overlap": timing(together=lambda exchange, experts, overlap: exchange + experts),
        "always the longer": timing(together=lambda exchange, experts, overlap: max(exchange, experts)),
        "overlap of the longer": timing(together=lambda a, b, overlap: a + b - overlap * max(a, b)),
        "overlap of both": timing(together=lambda a, b, overlap: (a + b) * (1 - overlap / 2)),
        "a kibi here and there": timing(scale=2**20),
        "seconds": timing(scale=1e9),
        "only the exchange": timing(together=lambda exchange, experts, overlap: exchange),
        "the idlest rank": timing(of_ranks=min),
    },
    "11.5": {
        "all is well": lambda report: [],
        "everything at once": lambda report: [
            "hang",
            "experts not divided",
            "experts divided twice",
            "router not averaged",
        ],
        "as many calls are enough": doctor(hangs=lambda calls: len({len(one) for one in calls}) > 1),
        "the same set of calls": doctor(hangs=lambda calls: len({frozenset(one) for one in calls}) > 1),
        "every call must be made": doctor(hangs=lambda calls: any(len(one) < 6 for one in calls)),
        "only the last rank": doctor(hangs=lambda calls: calls[-1] != calls[0]),
        "no look at the calls": doctor(hangs=lambda calls: False),
        "four ranks": doctor(
            larger=lambda experts, n: near(experts, 4), smaller=lambda experts, n: near(experts, 1 / 4)
        ),
        "one rank is not divided": doctor(larger=lambda experts, n: near(experts, n)),
        "larger, by whatever": doctor(larger=lambda experts, n: experts > 1),
        "larger and smaller mixed up": doctor(
            larger=lambda experts, n: n > 1 and near(experts, 1 / n),
            smaller=lambda experts, n: n > 1 and near(experts, n),
        ),
        "exactly": doctor(larger=lambda experts, n: n > 1 and experts == n),
        "only too large": doctor(smaller=lambda experts, n: False),
        "the router's mean": doctor(differs=lambda router: not near(mean(router), 1)),
        "the router to the last digit": doctor(differs=lambda router: any(one != 1 for one in router)),
        "the first rank's router": doctor(differs=lambda router: not near(router[0], 1)),
        "no look at the router": doctor(differs=lambda router: False),
        "the first fault": lambda report: doctor()(report)[:1],
        "how many": lambda report: len(doctor()(report)),
    },
}

HINT_NAMES = {}
