"""Answers to the exercises of lesson 06: right ones, and wrong ones that must be refused with a reason."""

import itertools
import math
from fractions import Fraction


def intensity(rows, d_model, d_expert, bytes_per_number):
    flops = 6 * rows * d_model * d_expert
    return flops / (bytes_per_number * (3 * d_model * d_expert + 2 * rows * d_model))


def woken(tokens, num_experts, top_k):
    return num_experts * (1 - (1 - top_k / num_experts) ** tokens)


def layer_intensity(tokens, d_expert, num_experts, top_k):
    return 3 * tokens * top_k * d_expert / (3 * d_expert * woken(tokens, num_experts, top_k) + 2 * tokens)


def first_batch(d_expert, num_experts, top_k, ridge):
    if ridge >= 1.5 * top_k * d_expert:
        return None
    return next(t for t in itertools.count(1) if layer_intensity(t, d_expert, num_experts, top_k) >= ridge)


PREDICTION = {1: ("B", "top_k * d_expert"), 256: ("A", "num_experts * d_expert")}
RIGHT = {"06.1": intensity, "06.2": woken, "06.3": first_batch, "06.4": PREDICTION}


# ---------------------------------------------------------------- the same answers, differently written


def intensity_by_matrices(rows, d_model, d_expert, bytes_per_number):
    """Gate, up and down one after the other, exactly."""
    matrices = [(d_model, d_expert), (d_model, d_expert), (d_expert, d_model)]
    flops = sum(2 * rows * inputs * outputs for inputs, outputs in matrices)
    numbers = sum(inputs * outputs for inputs, outputs in matrices) + rows * d_model + rows * d_model
    return Fraction(flops, numbers * bytes_per_number)


def woken_one_after_the_other(tokens, num_experts, top_k):
    """Each token wakes its share of those that still sleep."""
    awake = 0.0
    for _ in range(tokens):
        awake += (num_experts - awake) * top_k / num_experts
    return awake


def first_batch_by_halves(d_expert, num_experts, top_k, ridge):
    """Bisection, from FLOPs and bytes of a token of 4,096 numbers."""

    def pays(tokens):
        flops = 6 * tokens * top_k * 4096 * d_expert
        moved = 2 * (3 * 4096 * d_expert * woken(tokens, num_experts, top_k) + 2 * tokens * 4096)
        return flops / moved >= ridge

    low, high = 0, 2**24
    if not pays(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high


ALSO_RIGHT = {
    "06.1": intensity_by_matrices,
    "06.2": woken_one_after_the_other,
    "06.3": first_batch_by_halves,
    "06.4": {256: ["A", "num_experts * d_expert"], 1: ["B", "top_k * d_expert"]},
}


# ---------------------------------------------------------------- wrong answers


def intensities(rows, d_model, d_expert, size, flops=6, weights=3, per_row=2, more=0):
    """The intensity with its counts to choose; ``more`` are further numbers of a row, in d_expert."""
    moved = weights * d_model * d_expert + per_row * rows * d_model + more * rows * d_expert
    return flops * rows * d_model * d_expert / (size * moved)


def search(reaches, last=10**5):
    """The first batch that reaches; None after ``last``."""
    return next((t for t in range(1, last) if reaches(t)), None)


WRONG = {
    "06.1": {
        "a multiply-add is one": lambda r, d, f, b: intensities(r, d, f, b, flops=3),
        "two matrices": lambda r, d, f, b: intensities(r, d, f, b, flops=4, weights=2),
        "reads two matrices, computes three": lambda r, d, f, b: intensities(r, d, f, b, weights=2),
        "forgets y": lambda r, d, f, b: intensities(r, d, f, b, per_row=1),
        "forgets x and y": lambda r, d, f, b: intensities(r, d, f, b, per_row=0),
        "weights read for each row": lambda r, d, f, b: 6 * d * f / (b * (3 * d * f + 2 * d)),
        "the inner numbers go to memory": lambda r, d, f, b: intensities(r, d, f, b, more=2),
        "always two bytes": lambda r, d, f, b: intensities(r, d, f, 2),
        "bits": lambda r, d, f, b: intensities(r, d, f, 8 * b),
        "numbers, not bytes": lambda r, d, f, b: intensities(r, d, f, 1),
        "bytes of the weights only": lambda r, d, f, b: 6 * r * d * f / (b * 3 * d * f + 2 * r * d),
        "upside down": lambda r, d, f, b: 1 / intensity(r, d, f, b),
        "the rule of thumb, rows": lambda r, d, f, b: 2 * r / b,
        "whole FLOPs a byte": lambda r, d, f, b: intensity(r, d, f, b) // 1,
        "d_model and d_expert mixed up": lambda r, d, f, b: intensity(r, f, d, b),
    },
    "06.2": {
        "all that can be": lambda t, e, k: min(e, t * k),
        "lots with replacement": lambda t, e, k: e * (1 - (1 - 1 / e) ** (t * k)),
        "those that sleep": lambda t, e, k: e * (1 - k / e) ** t,
        "a share": lambda t, e, k: woken(t, e, k) / e,
        "one expert a token": lambda t, e, k: woken(t, e, 1),
        "one token fewer": lambda t, e, k: woken(max(t - 1, 0), e, k),
        "multiplied, not to the power": lambda t, e, k: e * (1 - max(0.0, 1 - t * k / e)),
        "top_k times one": lambda t, e, k: min(e, k * woken(t, e, 1)),
        "rounded up": lambda t, e, k: math.ceil(woken(t, e, k)),
        "a stranger to top_k = num_experts": lambda t, e, k: e * (1 - math.exp(t * math.log(1 - k / e))),
        "Poisson": lambda t, e, k: e * (1 - math.exp(-t * k / e)),
        "at least one": lambda t, e, k: max(1.0, woken(t, e, k)),
        "always all": lambda t, e, k: float(e),
    },
    "06.3": {
        "the rule of thumb": lambda f, e, k, ridge: math.ceil(ridge * e / k),
        "the dense layer's batch": lambda f, e, k, ridge: first_batch(k * f, 1, 1, ridge),
        "all weights, even at one token": lambda f, e, k, ridge: search(
            lambda t: 3 * t * k * f / (3 * f * e + 2 * t) >= ridge
        ),
        "never the tokens' bytes": lambda f, e, k, ridge: search(lambda t: t * k / woken(t, e, k) >= ridge),
        "x only": lambda f, e, k, ridge: search(lambda t: 3 * t * k * f / (3 * f * woken(t, e, k) + t) >= ridge),
        "x and y of each row": lambda f, e, k, ridge: search(
            lambda t: 3 * t * k * f / (3 * f * woken(t, e, k) + 2 * t * k) >= ridge
        ),
        "float32": lambda f, e, k, ridge: search(lambda t: layer_intensity(t, f, e, k) / 2 >= ridge),
        "FLOPs of one expert a token": lambda f, e, k, ridge: search(
            lambda t: layer_intensity(t, f, e, k) / k >= ridge
        ),
        "rows of an expert": lambda f, e, k, ridge: (
            None if ridge >= 1.5 * f else math.ceil(ridge / (1 - ridge / 1.5 / f))
        ),
        "one too many": lambda f, e, k, ridge: (first_batch(f, e, k, ridge) or -1) + 1 or None,
        "the last below": lambda f, e, k, ridge: (first_batch(f, e, k, ridge) or 1) - 1 or None,
        "powers of two": lambda f, e, k, ridge: search(
            lambda t: t & (t - 1) == 0 and layer_intensity(t, f, e, k) >= ridge
        ),
        "infinity for never": lambda f, e, k, ridge: first_batch(f, e, k, ridge) or math.inf,
        "zero for never": lambda f, e, k, ridge: first_batch(f, e, k, ridge) or 0,
        "never, too early": lambda f, e, k, ridge: None if ridge >= 1.5 * f else first_batch(f, e, k, ridge),
        "never, for narrow experts": lambda f, e, k, ridge: None if ridge >= k * f else first_batch(f, e, k, ridge),
        "at least as many as experts": lambda f, e, k, ridge: (
            None if first_batch(f, e, k, ridge) is None else max(e // k, first_batch(f, e, k, ridge))
        ),
    },
    "06.4": {
        "the fewest experts": {1: ("A", "num_experts"), 256: ("A", "num_experts")},
        "the narrowest": {1: ("C", "d_expert"), 256: ("C", "d_expert")},
        "the sparsest": {1: ("C", "top_k / num_experts"), 256: ("A", "num_experts * d_expert")},
        "never more than what a token uses": {1: ("B", "top_k * d_expert"), 256: ("B", "top_k * d_expert")},
        "always all": {1: ("A", "num_experts * d_expert"), 256: ("A", "num_experts * d_expert")},
        "right for a wrong reason": {1: ("B", "d_expert"), 256: ("A", "num_experts * d_expert")},
        "right for the other reason": {1: ("B", "top_k * d_expert"), 256: ("A", "top_k")},
        "no reason": {1: "B", 256: "A"},
        "another layer": {1: ("D", "top_k"), 256: ("A", "top_k")},
        "half an answer": {1: ("B", "top_k * d_expert")},
    },
}

HINT_NAMES = {"itertools": itertools}
ARGUMENTS = {
    "06.1": "rows, d_model, d_expert, bytes_per_number",
    "06.2": "tokens, num_experts, top_k",
    "06.3": "d_expert, num_experts, top_k, ridge",
}
