"""A patient with a factor too many: a scale that two places apply."""

import torch

from moe_lab.clinic.patient import Function, Law, Patient, compare, draw


def combine_scaled(routed, weights, shared, factor):
    """factor * (sum of weight * answer over slots) + shared: (tokens, slots, d_model), (tokens, slots) and a table."""
    weights = factor * weights
    output = (weights[:, :, None] * routed).sum(dim=1)
    return factor * output + shared


def _scaled_at_the_end(routed, weights, shared, factor):
    return factor * (weights[:, :, None] * routed).sum(dim=1) + shared


def _scaled_in_the_weights(routed, weights, shared, factor):
    return torch.einsum("ts,tsd->td", factor * weights, routed) + shared


def _parts(tokens: int, slots: int, seed: int = 0) -> tuple:
    weights = draw(tokens, slots, seed=seed).softmax(dim=1)
    return draw(tokens, slots, 3, seed=seed + 1), weights, draw(tokens, 3, seed=seed + 2)


def _scales(factor: float, tokens: int = 4, slots: int = 2, seed: int = 0) -> Law:
    def law(combine: Function) -> str | None:
        routed, weights, shared = _parts(tokens, slots, seed)
        yours = combine(routed, weights, shared, factor)
        return compare(yours, _scaled_at_the_end(routed, weights, shared, factor))

    return law


def _shared_stays(combine: Function) -> str | None:
    routed, weights, shared = _parts(3, 2, seed=8)
    for factor in (0.5, 2.5, 16.0):
        fault = compare(combine(0 * routed, weights, shared, factor), shared, f"routed answers of 0, factor {factor}: ")
        if fault is not None:
            return fault
    return None


def _tell_scale(combine: Function) -> str:
    routed, weights, shared = _parts(16, 8)
    one, more = (combine(routed, weights, 0 * shared, factor) for factor in (1.0, 2.5))
    return (
        "DeepSeek-V3 multiplies the sum of its routed experts by 2.5. "
        f"Against factor 1 it comes out {float(more.norm() / one.norm()):.2f} times as large."
    )


SCALED_TWICE = Patient(
    "Two and a half times two and a half",
    ("vllm-project/vllm#24119", "vllm-project/vllm#45037", "sgl-project/sglang#28237"),
    _tell_scale,
    combine_scaled,
    {"at the end": _scaled_at_the_end, "in the weights": _scaled_in_the_weights},
    {
        "the shared expert too": lambda routed, weights, shared, factor: (
            factor * (_scaled_at_the_end(routed, weights, shared, 1.0))
        ),
        "the shared expert divided": lambda routed, weights, shared, factor: _scaled_at_the_end(
            routed, weights, shared / factor, factor
        ),
        "not at all": lambda routed, weights, shared, factor: _scaled_at_the_end(routed, weights, shared, 1.0),
        "no weights": lambda routed, weights, shared, factor: factor * routed.sum(dim=1) + shared,
        "no shared expert": lambda routed, weights, shared, factor: _scaled_at_the_end(
            routed, weights, 0 * shared, factor
        ),
        "the first slot only": lambda routed, weights, shared, factor: (
            _scaled_at_the_end(routed, weights, shared, 1.0) + (factor - 1) * weights[:, :1] * routed[:, 0]
        ),
    },
    {
        "factor 1": _scales(1.0),
        "factor 2.5": _scales(2.5),
        "less than 1": _scales(0.25, seed=3),
        "one slot": _scales(2.0, slots=1, seed=4),
        "eight slots": _scales(2.5, tokens=9, slots=8, seed=5),
        "the shared expert is left alone": _shared_stays,
    },
)
