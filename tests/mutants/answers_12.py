"""Answers to the exercises of lesson 12: right ones, and wrong ones that must be refused with a reason."""

import math
from collections import Counter

ARGUMENTS = {
    "12.1": "visits, tokens",
    "12.2": "experts, labels",
    "12.3": "statistic, experts, documents, domains, orders",
    "12.4": "experts, documents",
    "12.5": "report",
}


def mean(values):
    return sum(values) / len(values)


def informing(*, part=lambda count, n, expert, label: count / n * math.log2(count * n / (expert * label)), total=sum):
    """Mutual information, with what a pair adds and how it is added to replace."""

    def answer(experts, labels):
        n, of_expert, of_label = len(experts), Counter(experts), Counter(labels)
        pairs = Counter(zip(experts, labels, strict=True))
        return total([part(count, n, of_expert[expert], of_label[label]) for (expert, label), count in pairs.items()])

    return answer


def shuffling(
    *,
    label=lambda domains, order: [domains[other] for other in order],
    counts=lambda value, found: value >= found,
    share=lambda many, n: (1 + many) / (1 + n),
    of_token=lambda of_document, documents: [of_document[document] for document in documents],
):
    """A p-value, with each of its steps to replace."""

    def answer(statistic, experts, documents, domains, orders):
        found = statistic(experts, of_token(domains, documents))
        values = [statistic(experts, of_token(label(domains, order), documents)) for order in orders]
        return share(sum(counts(value, found) for value in values), len(orders))

    return answer


def staying(
    *,
    beside=lambda documents, i: documents[i] == documents[i + 1],
    found=lambda same: sum(same) / len(same),
    chance=lambda counts, n: sum((count / n) ** 2 for count in counts.values()),
):
    """Neighbours and chance, with each of its parts to replace."""

    def answer(experts, documents):
        same = [experts[i] == experts[i + 1] for i in range(len(experts) - 1) if beside(documents, i)]
        return found(same), chance(Counter(experts), len(experts))

    return answer


def own(codes):
    return [int(code in (9, 10, 13, 32)) for code in codes]


def doctor(
    *,
    shifted=lambda report: report["white"] != own(report["codes"]),
    unequal=lambda tokens: len(set(tokens)) > 1,
    wrong=lambda report: report["shuffled"] != "documents",
    weak=lambda above, n: (1 + above) / (1 + n) > 0.05,
    above=lambda report: sum(chance >= report["found"] for chance in report["chance"]),
):
    """What is wrong with a finding, with each of the looks to replace."""

    def answer(report):
        faults = {
            "labels shifted": shifted(report),
            "unequal lengths": unequal(report["tokens"]),
            "wrong shuffle": wrong(report),
            "within chance": weak(above(report), len(report["chance"])),
        }
        return [name for name, is_so in faults.items() if is_so]

    return answer


RIGHT = {
    "12.1": lambda visits, tokens: mean([(1 - visit) ** tokens for visit in visits]),
    "12.2": informing(),
    "12.3": shuffling(),
    "12.4": staying(),
    "12.5": doctor(),
}


# ---------------------------------------------------------------- the same answers, differently written


def idle_one_by_one(visits, tokens):
    """After each token, those of the experts that are still idle."""
    idle = [1.0] * len(visits)
    for _ in range(tokens):
        idle = [still * (1 - visit) for still, visit in zip(idle, visits, strict=True)]
    return mean(idle)


def three_entropies(experts, labels):
    def entropy(values):
        return -sum(count / len(values) * math.log2(count / len(values)) for count in Counter(values).values())

    return entropy(experts) + entropy(labels) - entropy(list(zip(experts, labels, strict=True)))


def found_as_the_first_shuffle(statistic, experts, documents, domains, orders):
    everyone = [list(range(len(domains))), *orders]
    values = [statistic(experts, [domains[order[one]] for one in documents]) for order in everyone]
    return mean([value >= values[0] for value in values])


def pairs_of_all_tokens(experts, documents):
    n = len(experts)
    beside = [(experts[i] == experts[i - 1]) for i in range(1, n) if documents[i] == documents[i - 1]]
    return mean(beside), mean([one == other for one in experts for other in experts])


def faults_in_order(report):
    found = []
    if any(
        bool(label) != bytes([code]).isspace() for code, label in zip(report["codes"], report["white"], strict=True)
    ):
        found.append("labels shifted")
    if min(report["tokens"]) != max(report["tokens"]):
        found.append("unequal lengths")
    if report["shuffled"] == "tokens":
        found.append("wrong shuffle")
    values = [report["found"], *report["chance"]]
    if mean([value >= report["found"] for value in values]) > 0.05:
        found.append("within chance")
    return found


ALSO_RIGHT = {
    "12.1": idle_one_by_one,
    "12.2": three_entropies,
    "12.3": found_as_the_first_shuffle,
    "12.4": pairs_of_all_tokens,
    "12.5": faults_in_order,
}

WRONG = {
    "12.1": {
        "busy experts": lambda visits, tokens: 1 - mean([(1 - visit) ** tokens for visit in visits]),
        "the power of the mean": lambda visits, tokens: (1 - mean(visits)) ** tokens,
        "a sum": lambda visits, tokens: sum((1 - visit) ** tokens for visit in visits),
        "visited every time": lambda visits, tokens: mean([visit**tokens for visit in visits]),
        "one token": lambda visits, tokens: mean([1 - visit for visit in visits]),
        "at most one visit": lambda visits, tokens: mean([max(0.0, 1 - visit * tokens) for visit in visits]),
        "by the exponential": lambda visits, tokens: mean([math.exp(-visit * tokens) for visit in visits]),
        "one token more": lambda visits, tokens: mean([(1 - visit) ** (tokens + 1) for visit in visits]),
        "a quarter": lambda visits, tokens: 0.25,
        "the likeliest to be idle": lambda visits, tokens: max((1 - visit) ** tokens for visit in visits),
    },
    "12.2": {
        "nats": informing(part=lambda count, n, expert, label: count / n * math.log(count * n / (expert * label))),
        "without n": informing(part=lambda count, n, expert, label: count / n * math.log2(count / (expert * label))),
        "not weighed": informing(part=lambda count, n, expert, label: math.log2(count * n / (expert * label))),
        "weighed by chance": informing(
            part=lambda count, n, expert, label: expert * label / n**2 * math.log2(count * n / (expert * label))
        ),
        "turned round": informing(
            part=lambda count, n, expert, label: count / n * math.log2(expert * label / (count * n))
        ),
        "only what attracts": informing(
            part=lambda count, n, expert, label: count / n * max(0.0, math.log2(count * n / (expert * label)))
        ),
        "entropy of both": informing(part=lambda count, n, expert, label: -count / n * math.log2(count / n)),
        "entropy of the label": informing(part=lambda count, n, expert, label: -count / n * math.log2(label / n)),
        "entropy of the expert": informing(part=lambda count, n, expert, label: -count / n * math.log2(expert / n)),
        "given the expert": informing(part=lambda count, n, expert, label: -count / n * math.log2(count / expert)),
        "a share of the label": lambda experts, labels: (
            informing()(experts, labels) / max(1e-9, three_entropies(labels, labels))
        ),
        "share that agrees": lambda experts, labels: mean([e == one for e, one in zip(experts, labels, strict=True)]),
        "without its bias": lambda experts, labels: (
            informing()(experts, labels)
            - (len(set(experts)) - 1) * (len(set(labels)) - 1) / (2 * len(experts) * math.log(2))
        ),
        "the largest part": informing(total=max),
        "one too many": lambda experts, labels: informing()(experts, labels) + 1,
    },
    "12.3": {
        "never itself": shuffling(share=lambda many, n: many / n if n else 1.0),
        "not one of all": shuffling(share=lambda many, n: (1 + many) / n if n else 1.0),
        "the found one for nothing": shuffling(share=lambda many, n: many / (1 + n)),
        "larger only": shuffling(counts=lambda value, found: value > found),
        "smaller ones": shuffling(counts=lambda value, found: value <= found),
        "not smaller": shuffling(share=lambda many, n: 1 - many / (1 + n)),
        "order as the labels": shuffling(label=lambda domains, order: list(order)),
        "the other way round": shuffling(
            label=lambda domains, order: [domains[order.index(d)] for d in range(len(order))]
        ),
        "no shuffle at all": shuffling(label=lambda domains, order: domains),
        "tokens instead of documents": shuffling(
            of_token=lambda of_document, documents: [of_document[i % len(of_document)] for i in range(len(documents))]
        ),
        "documents as labels": shuffling(of_token=lambda of_document, documents: list(documents)),
        "always small": lambda statistic, experts, documents, domains, orders: 1 / (1 + len(orders)),
    },
    "12.4": {
        "across documents": staying(beside=lambda documents, i: True),
        "a document has no next": staying(beside=lambda documents, i: documents[i] != documents[i + 1]),
        "over all tokens": lambda experts, documents: (
            sum(a == b and c == d for a, b, c, d in zip(experts, experts[1:], documents, documents[1:], strict=False))
            / len(experts),
            staying()(experts, documents)[1],
        ),
        "changes": staying(found=lambda same: 1 - sum(same) / len(same)),
        "how many": staying(found=sum),
        "even loads": staying(chance=lambda counts, n: 1 / len(counts)),
        "even loads, all numbers": lambda experts, documents: (
            staying()(experts, documents)[0],
            1 / (max(experts) + 1),
        ),
        "the busiest": staying(chance=lambda counts, n: max(counts.values()) / n),
        "shares, not squares": staying(chance=lambda counts, n: sum(count / n for count in counts.values())),
        "never the same token twice": staying(
            chance=lambda counts, n: sum(count * (count - 1) for count in counts.values()) / (n * (n - 1))
        ),
        "two apart": lambda experts, documents: (
            mean([a == b for a, b in zip(experts, experts[2:], strict=False)]),
            staying()(experts, documents)[1],
        ),
        "only what was found": lambda experts, documents: (staying()(experts, documents)[0],),
    },
    "12.5": {
        "all is well": lambda report: [],
        "everything at once": lambda report: ["labels shifted", "unequal lengths", "wrong shuffle", "within chance"],
        "as many are white": doctor(shifted=lambda report: sum(report["white"]) != sum(own(report["codes"]))),
        "the first label": doctor(shifted=lambda report: report["white"][0] != own(report["codes"])[0]),
        "spaces only": doctor(shifted=lambda report: report["white"] != [int(code == 32) for code in report["codes"]]),
        "without carriage returns": doctor(
            shifted=lambda report: report["white"] != [int(code in (9, 10, 32)) for code in report["codes"]]
        ),
        "shifted forwards only": doctor(
            shifted=lambda report: report["white"] == own(report["codes"])[1:] + own(report["codes"])[:1]
        ),
        "no look at labels": doctor(shifted=lambda report: False),
        "lengths in the mean": doctor(unequal=lambda tokens: tokens[0] != sum(tokens[:3]) / len(tokens[:3])),
        "no look at lengths": doctor(unequal=lambda tokens: False),
        "any shuffle": doctor(wrong=lambda report: False),
        "only if documents share domains": doctor(
            wrong=lambda report: report["shuffled"] == "tokens" and len(set(report["domains"])) < len(report["domains"])
        ),
        "above the mean": doctor(
            above=lambda report: report["found"] <= mean(report["chance"]), weak=lambda above, n: above
        ),
        "above all": doctor(weak=lambda above, n: above > 0),
        "without itself": doctor(weak=lambda above, n: above / n > 0.05),
        "ties are wins": doctor(above=lambda report: sum(chance > report["found"] for chance in report["chance"])),
        "no look at chance": doctor(weak=lambda above, n: False),
        "one in a hundred": doctor(weak=lambda above, n: (1 + above) / (1 + n) > 0.01),
        "the first fault": lambda report: doctor()(report)[:1],
    },
}

HINT_NAMES = {}
