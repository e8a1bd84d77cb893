"""Exercises of lesson 12: idle experts, mutual information, shuffled documents, experts that stay, four ways to err."""

import math
import random
from collections.abc import Sequence

import torch

from moe_lab.exercises import Exercise, Property
from moe_lab.specialisation import Chance, mutual_information, repetition

# ---------------------------------------------------------------- 12.1: experts that a prompt leaves idle


def idle_share(visits: list[float], tokens: int) -> float:
    """Mean share of experts without any of ``tokens`` independent tokens, each at expert e with chance visits[e]."""
    return sum((1 - visit) ** tokens for visit in visits) / len(visits)


def _idle(visits: list[float], tokens: int, spec: float | int | None = None) -> Property:
    def holds(answer) -> str | None:
        yours, wanted = answer(list(visits), tokens), idle_share(visits, tokens) if spec is None else spec
        near = math.isclose(yours, wanted, rel_tol=1e-9, abs_tol=1e-12)
        return None if near else f"yours {yours:.6g}, spec {wanted:.6g}"

    return holds


def _idle_drawn(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(30):
        visits, tokens = [draw.random() for _ in range(draw.randint(1, 40))], draw.randint(1, 50)
        if (fault := _idle(visits, tokens)(answer)) is not None:
            return f"{len(visits)} experts drawn by chance, {tokens} tokens: {fault}"
    return None


# ---------------------------------------------------------------- 12.2: mutual information


def bits(experts: list[int], labels: list[int]) -> float:
    """The library's value, for any whole numbers as names."""
    numbers = [torch.tensor([sorted(set(names)).index(name) for name in names]) for names in (experts, labels)]
    return mutual_information(numbers[0], numbers[1], int(numbers[0].max()) + 1)


def _says(experts: list[int], labels: list[int], spec: float | int | None = None) -> Property:
    def holds(answer) -> str | None:
        yours, wanted = answer(list(experts), list(labels)), bits(experts, labels) if spec is None else spec
        return None if math.isclose(yours, wanted, abs_tol=1e-9) else f"yours {yours:.6g} bits, spec {wanted:.6g}"

    return holds


def _says_drawn(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(30):
        tokens = draw.randint(1, 60)
        experts = [draw.randint(0, 5) for _ in range(tokens)]
        labels = [expert // 2 if draw.random() < 0.6 else draw.randint(0, 9) for expert in experts]
        if (fault := _says(experts, labels)(answer)) is not None:
            return f"{tokens} tokens drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 12.3: a p-value that respects documents


def document_p_value(statistic, experts: list[int], documents: list[int], domains: list[int], orders) -> float:
    """(1 + shuffles at least as large) / (1 + shuffles), document d of a shuffle having the domain of order[d]."""

    def value(of_document: list[int]) -> float:
        return float(statistic(list(experts), [of_document[document] for document in documents]))

    return Chance(tuple(value([domains[other] for other in order]) for order in orders)).p_value(value(domains))


def agreement(experts: list[int], labels: list[int]) -> int:
    """A statistic that can be counted by hand: tokens whose expert and label are the same number."""
    return sum(expert == label for expert, label in zip(experts, labels, strict=True))


def _p(statistic, experts, documents, domains, orders, spec: float | int | None = None) -> Property:
    def holds(answer) -> str | None:
        given = (list(experts), list(documents), list(domains), [list(order) for order in orders])
        wanted = document_p_value(statistic, *given) if spec is None else spec
        yours = answer(statistic, *given)
        return None if math.isclose(yours, wanted, rel_tol=1e-9) else f"yours {yours:.6g}, spec {wanted:.6g}"

    return holds


def _p_drawn(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(20):
        count = draw.randint(2, 6)
        documents = [document for document in range(count) for _ in range(draw.randint(1, 8))]
        experts, domains = [draw.randint(0, 2) for _ in documents], [draw.randint(0, 2) for _ in range(count)]
        orders = [draw.sample(range(count), count) for _ in range(draw.randint(1, 12))]
        if (fault := _p(draw.choice([agreement, bits]), experts, documents, domains, orders)(answer)) is not None:
            return f"{count} documents drawn by chance, {len(orders)} shuffles: {fault}"
    return None


EXPERTS, DOCUMENTS = [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 2, 2]
SWAPS = [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]]

# ---------------------------------------------------------------- 12.4: experts that stay


def stays(experts: list[int], documents: list[int]) -> tuple[float, float]:
    """Share of neighbours in a document with the same expert, and sum(p^2)."""
    share = repetition(torch.tensor(experts), max(experts) + 1, torch.tensor(documents))
    return share.found, share.chance


def _stays(experts: list[int], documents: list[int], spec: Sequence[float | int] | None = None) -> Property:
    def holds(answer) -> str | None:
        yours = tuple(answer(list(experts), list(documents)))
        wanted = tuple(stays(experts, documents) if spec is None else spec)
        near = len(yours) == 2 and all(math.isclose(*pair, abs_tol=1e-9) for pair in zip(yours, wanted, strict=True))
        shown = ", ".join(f"{value:.6g}" for value in yours)
        return None if near else f"yours ({shown}), spec ({wanted[0]:.6g}, {wanted[1]:.6g})"

    return holds


def _stays_drawn(answer) -> str | None:
    draw = random.Random(0)
    for _ in range(30):
        documents = [document for document in range(draw.randint(1, 4)) for _ in range(draw.randint(2, 12))]
        experts = [draw.choice([0, 0, 0, 1, 2, 5]) for _ in documents]
        if (fault := _stays(experts, documents)(answer)) is not None:
            return f"{len(experts)} tokens drawn by chance: {fault}"
    return None


# ---------------------------------------------------------------- 12.5: what is wrong with this finding

TEXT = b"if x:\n    y = 1\nz = [y, x]\n"
OTHER = b"a b  c\r\n\td"
WHITE = (9, 10, 13, 32)
FAULTS = ("labels shifted", "unequal lengths", "wrong shuffle", "within chance")


def white(text: bytes) -> list[int]:
    """1 for white space, 0 for anything else, a number a byte."""
    return [int(byte in WHITE) for byte in text]


def make_report(**changes: object) -> dict[str, object]:
    """A report without a fault: 19 shuffles of whole documents, none as large as what was found."""
    report = {
        "codes": list(TEXT),
        "white": white(TEXT),
        "tokens": [3072] * 6,
        "domains": [0, 0, 0, 1, 1, 1],
        "shuffled": "documents",
        "found": 0.31,
        "chance": [0.01 * one for one in range(19)],
    }
    return report | changes


def _finds(spec: list[str], **changes: object) -> Property:
    def holds(answer) -> str | None:
        yours = answer(make_report(**changes))
        return None if isinstance(yours, Sequence) and list(yours) == spec else f"yours {yours!r}, spec {spec}"[:200]

    return holds


def _moved(by: int, text: bytes = TEXT) -> list[int]:
    """Labels of the byte ``by`` places later; what falls off one end comes back at the other."""
    labels = white(text)
    return labels[by:] + labels[:by]


EXERCISES = {
    "12.1": Exercise(
        "Predict the experts that a prompt leaves idle",
        {
            "top-8 of 64, even, ten tokens": _idle([1 / 8] * 64, 10, (7 / 8) ** 10),
            "one token, one expert of four": _idle([0.25] * 4, 1, 0.75),
            "no token at all": _idle([0.5, 0.5], 0, 1),
            "an expert that all visit": _idle([1.0, 0.5], 3, 1 / 16),
            "an expert that none visits": _idle([0.0, 1.0], 7, 0.5),
            "popular and rare": _idle([0.9, 0.05, 0.05], 20),
            "many, drawn by chance": _idle_drawn,
        },
        hints=(
            "Look at one expert. How likely is it that the first token passes it by? The second as well? Means add up.",
            "A token misses expert e with 1 - visits[e], all of them with that to the power of `tokens`. Then the mean "
            "over the experts; not the power of the mean.",
            "\n    return sum((1 - visit) ** tokens for visit in visits) / len(visits)",
        ),
    ),
    "12.2": Exercise(
        "Implement mutual information",
        {
            "the expert says all": _says([0, 0, 1, 1], [5, 5, 7, 7], 1),
            "the expert says nothing": _says([0, 1, 0, 1], [3, 3, 4, 4], 0),
            "the example": _says([0, 0, 1, 1], [0, 0, 1, 0], 1.5 - 0.75 * math.log2(3)),
            "one label": _says([0, 1, 2], [9, 9, 9], 0),
            "one token": _says([4], [2], 0),
            "four of each: two bits": _says([0, 1, 2, 3], [3, 2, 1, 0], 2),
            "half of what an even expert could say": _says([0, 1, 2, 3], [0, 0, 1, 1], 1),
            "many, drawn by chance": _says_drawn,
        },
        hints=(
            "Count three things: how often each expert occurs, each label, and each pair of both.",
            "With n tokens, sum over the pairs that occur: count / n * log2(count * n / (of_expert * of_label)), with "
            "the counts of its expert and of its label. Pairs that never occur add nothing. collections.Counter "
            "counts; zip makes pairs.",
            "\n    import math\n"
            "    from collections import Counter\n"
            "    n, of_expert, of_label = len(experts), Counter(experts), Counter(labels)\n"
            "    return sum(\n"
            "        count / n * math.log2(count * n / (of_expert[expert] * of_label[label]))\n"
            "        for (expert, label), count in Counter(zip(experts, labels)).items()\n"
            "    )",
        ),
    ),
    "12.3": Exercise(
        "Shuffle documents for a p-value",
        {
            "the example": _p(agreement, EXPERTS, DOCUMENTS, [0, 1, 1], SWAPS, 2 / 5),
            "no shuffle": _p(agreement, EXPERTS, DOCUMENTS, [0, 1, 1], [], 1),
            "one that is as large": _p(agreement, [0, 1], [0, 1], [0, 1], [[0, 1]], 1),
            "one that is smaller": _p(agreement, [0, 1], [0, 1], [0, 1], [[1, 0]], 1 / 2),
            "documents of one domain": _p(bits, EXPERTS, DOCUMENTS, [1, 1, 1], SWAPS, 1),
            "which document gets whose": _p(agreement, [0, 1, 2], [0, 1, 2], [1, 2, 0], [[2, 0, 1]], 1),
            "any statistic": _p(bits, EXPERTS, DOCUMENTS, [0, 1, 0], SWAPS),
            "many, drawn by chance": _p_drawn,
        },
        hints=(
            "A shuffle changes which domain a *document* has. Every token then takes the label of its document, as it "
            "does for the value that was found.",
            "In a shuffle `order`, document d has domains[order[d]]; a token of document d has it as its label. Count "
            "shuffles whose statistic is at least the found one, which is itself one of all: (1 + many) / (1 + all).",
            "\n    def value(of_document):\n"
            "        return statistic(experts, [of_document[document] for document in documents])\n"
            "    found = value(domains)\n"
            "    many = sum(value([domains[other] for other in order]) >= found for order in orders)\n"
            "    return (1 + many) / (1 + len(orders))",
        ),
    ),
    "12.4": Exercise(
        "Compare neighbours with chance",
        {
            "the example": _stays([0, 0, 1, 1, 1, 0], [0] * 6, (3 / 5, 1 / 2)),
            "a new document is no neighbour": _stays([0, 0, 0, 1], [0, 0, 1, 1], (1 / 2, 10 / 16)),
            "never the same": _stays([0, 1, 0, 1], [0] * 4, (0, 1 / 2)),
            "one expert for all": _stays([2, 2, 2], [0] * 3, (1, 1)),
            "uneven loads repeat by chance": _stays([0] * 9 + [1], [0] * 10, (8 / 9, 0.82)),
            "four even experts": _stays([0, 1, 2, 3, 3, 2, 1, 0], [0] * 8, (1 / 7, 1 / 4)),
            "many, drawn by chance": _stays_drawn,
        },
        hints=(
            "Walk through the tokens in pairs, each with the next. Which pairs do not count? And for chance: how often "
            "do two tokens drawn anywhere have one expert?",
            "Neighbours count if their documents are the same. Chance: with p the share of an expert among all tokens, "
            "two independent draws agree with sum(p * p), which is 1 / experts only for an even load.",
            "\n    from collections import Counter\n"
            "    pairs = [i for i in range(len(experts) - 1) if documents[i] == documents[i + 1]]\n"
            "    found = sum(experts[i] == experts[i + 1] for i in pairs) / len(pairs)\n"
            "    return found, sum((count / len(experts)) ** 2 for count in Counter(experts).values())",
        ),
    ),
    "12.5": Exercise(
        "Diagnose a finding about experts",
        {
            "nothing is wrong": _finds([]),
            "labels of the next byte": _finds(["labels shifted"], white=_moved(1)),
            "labels of the byte before": _finds(["labels shifted"], white=_moved(-1)),
            "another text, shifted": _finds(["labels shifted"], codes=list(OTHER), white=_moved(1, OTHER)),
            "another text": _finds([], codes=list(OTHER), white=white(OTHER)),
            "one file is longer": _finds(["unequal lengths"], tokens=[3072] * 5 + [30720]),
            "tokens shuffled, domains of documents": _finds(["wrong shuffle"], shuffled="tokens"),
            "each document its own domain": _finds(["wrong shuffle"], domains=[0, 1, 2, 3, 4, 5], shuffled="tokens"),
            "one shuffle of nineteen is as large": _finds(["within chance"], chance=[0.0] * 18 + [0.31]),
            "below most shuffles": _finds(["within chance"], found=0.05),
            "too few shuffles to say": _finds(["within chance"], chance=[0.0] * 9),
            "one of forty is no harm": _finds([], chance=[0.0] * 39 + [0.5]),
            "all at once": _finds(list(FAULTS), white=_moved(1), tokens=[1, 2], shuffled="tokens", found=0.0),
        },
        hints=(
            "Four looks: labels beside their own bytes; lengths beside each other; what was shuffled; the p-value.",
            "White space is 9, 10, 13 or 32; labels that differ from their bytes' anywhere are shifted. Lengths "
            "that differ are unequal. `shuffled` must be 'documents', since a domain belongs to a document. And (1 + "
            "chances >= found) / (1 + chances) must be at most 0.05.",
            "\n    own = [int(code in (9, 10, 13, 32)) for code in report['codes']]\n"
            "    above = sum(chance >= report['found'] for chance in report['chance'])\n"
            "    faults = {\n"
            "        'labels shifted': report['white'] != own,\n"
            "        'unequal lengths': len(set(report['tokens'])) > 1,\n"
            "        'wrong shuffle': report['shuffled'] != 'documents',\n"
            "        'within chance': (1 + above) / (1 + len(report['chance'])) > 0.05,\n"
            "    }\n"
            "    return [name for name, is_so in faults.items() if is_so]",
        ),
    ),
}
