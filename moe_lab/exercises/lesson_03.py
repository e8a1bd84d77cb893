"""Exercises of lesson 03: the auxiliary loss, a bias that knows the noise floor, and what a load gives away."""

import math

import torch
from torch import Tensor

from moe_lab import losses
from moe_lab.balance import measure_balance
from moe_lab.exercises import Exercise, Property
from moe_lab.routers import route
from moe_lab.types import Routing

# 03.1: the auxiliary loss ---------------------------------------------------------------------------------------------

_BY_HAND = torch.tensor([[4.0, 2, 2], [4.0, 3, 1], [2.0, 1, 1], [1.0, 1, 2]]).log()
_FIRST = torch.tensor([[0], [0], [0], [2]])


def _draw(tokens: int, num_experts: int, seed: int, spread: float = 1.0) -> Tensor:
    lean = torch.linspace(0, spread, num_experts)
    return torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(seed)) + lean


def _spec_loss(logits: Tensor, experts: Tensor) -> Tensor:
    return losses.switch_aux(logits, Routing.trusted(experts, torch.zeros(experts.shape), logits.shape[1]))


def _loses(logits: Tensor, experts: Tensor, case: str = "") -> Property:
    def holds(answer) -> str | None:
        yours, spec = float(answer(logits.clone(), experts.clone())), float(_spec_loss(logits, experts))
        return (
            None
            if math.isclose(yours, spec, rel_tol=1e-4, abs_tol=1e-6)
            else f"yours {yours:.4f}, spec {spec:.4f}{case}"
        )

    return holds


def _loses_at_random(top_k: int) -> Property:
    def holds(answer) -> str | None:
        for tokens, num_experts, seed in ((7, 3, 0), (33, 16, 1), (257, 5, 2)):
            logits = _draw(tokens, num_experts, seed, spread=3.0)
            case = f" for {tokens} tokens, {num_experts} experts, top_k {top_k}"
            if fault := _loses(logits, route(logits, top_k).experts, case)(answer):
                return fault
        return None

    return holds


def _gradient_is_that_of_p_alone(answer) -> str | None:
    logits = _draw(40, 6, seed=3, spread=2.0)
    experts = route(logits, 2).experts
    mine, spec = (logits.clone().requires_grad_() for _ in range(2))
    loss = answer(mine, experts)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return "no gradient reaches the logits, so the loss would teach nothing"
    (yours,) = torch.autograd.grad(loss, mine)
    (wanted,) = torch.autograd.grad(_spec_loss(spec, experts), spec)
    error, size = float((yours - wanted).abs().max()), float(wanted.abs().max())
    return None if error < 1e-4 * size else f"the gradient is off by up to {error / size:.2g} of its size, spec 1e-04"


# 03.2: the sign update, still at the noise floor ----------------------------------------------------------------------


def _spec_bias(bias: Tensor, load: Tensor, top_k: int, rate: float) -> list[float]:
    """One expert after the other."""
    total = sum(load.tolist())
    mean, moved = total / len(load), []
    noise = mean * math.sqrt((len(load) / top_k - 1) * top_k / total) if total else 0.0
    for value, count in zip(bias.tolist(), load.tolist(), strict=True):
        direction = 0 if abs(count - mean) <= noise else 1 if count < mean else -1
        moved.append(value + rate * direction)
    return moved


def _moves(load: list[int] | Tensor, top_k: int, rate: float = 0.5, bias: list[float] | None = None) -> Property:
    load = torch.as_tensor(load)
    before = torch.zeros(len(load)) if bias is None else torch.tensor(bias)

    def holds(answer) -> str | None:
        given = before.clone()
        yours, spec = answer(given, load.clone(), top_k, rate), _spec_bias(before, load, top_k, rate)
        if not torch.equal(given, before):
            return "it changed the bias that it was given, spec: return a new one"
        if not isinstance(yours, Tensor) or yours.shape != before.shape:
            return f"yours {getattr(yours, 'shape', type(yours).__name__)}, spec a tensor {tuple(before.shape)}"
        close = torch.allclose(yours.double(), torch.tensor(spec, dtype=torch.float64), atol=1e-6)
        shown = [round(float(value), 3) for value in yours.tolist()]
        case = f" for load {load.tolist()}, top_k {top_k}, rate {rate}"
        return (
            None
            if close
            else f"yours {shown}, spec {[round(value, 3) for value in spec]}{case if len(load) < 9 else ''}"
        )

    return holds


def _drawn_load(tokens: int, num_experts: int, top_k: int, seed: int) -> Tensor:
    """The load of fair lots."""
    return route(torch.zeros(tokens, num_experts), top_k, "random", generator=torch.Generator().manual_seed(seed)).load


# 03.3: what a load gives away -----------------------------------------------------------------------------------------


def _spec_verdict(load: Tensor, top_k: int) -> str:
    found = measure_balance(load, top_k=top_k)
    if 2 * found.dead >= len(load):
        return "collapsed"
    ratio = found.cv / found.noise_floor_cv
    return "forced" if ratio < 0.5 else "as by chance" if ratio <= 2 else "uneven"


def _judges(load: list[int] | Tensor, top_k: int, name: str = "") -> Property:
    load = torch.as_tensor(load)

    def holds(answer) -> str | None:
        yours, spec = answer(load.clone(), top_k), _spec_verdict(load, top_k)
        said = load.tolist() if len(load) < 9 else f"a load of {len(load)} experts, {int(load.sum())} assignments"
        return None if yours == spec else f"yours {yours!r}, spec {spec!r} for {name or said}, top_k {top_k}"

    return holds


EXERCISES = {
    "03.1": Exercise(
        "Write Switch's auxiliary loss",
        {
            "four tokens, three experts, by hand": _loses(_BY_HAND, _FIRST),
            "1 where every logit is equal": _loses(torch.zeros(6, 4), torch.tensor([[0], [1], [2], [3], [0], [1]])),
            "still 1 with two experts a token": _loses(torch.zeros(4, 4), torch.tensor([[0, 1], [2, 3]] * 2)),
            "random logits, one expert a token": _loses_at_random(1),
            "random logits, three experts a token": _loses_at_random(3),
            "P counts the experts that nobody chose": _loses(
                torch.tensor([[2.0, 1.9, 1.8]] * 5), torch.tensor([[0, 1]] * 5)
            ),
            "experts that are not the best of the logits": _loses(_draw(9, 4, 5), torch.tensor([[3], [1], [0]] * 3)),
            "logits of a thousand": _loses(torch.tensor([[1e3, 0.0], [1e3, 0.0]]), torch.tensor([[0], [0]])),
            "no tokens, no loss": _loses(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64)),
            "the gradient is that of P, f is a constant": _gradient_is_that_of_p_alone,
        },
        hints=(
            "Two vectors of length num_experts: f, the share of all assignments, and P, the tokens' mean softmax.",
            "f: bincount of the flattened experts, with a minlength, divided by tokens * top_k. P: the softmax over "
            "all experts, then the mean over tokens. Guard the division for no tokens.",
            "num_experts = logits.shape[1]; "
            "f = experts.flatten().bincount(minlength=num_experts) / max(1, experts.numel()); "
            "P = logits.softmax(dim=1).sum(dim=0) / max(1, len(logits)); "
            "return num_experts * (f * P).sum()",
        ),
    ),
    "03.2": Exercise(
        "Move a bias, and leave chance alone",
        {
            "one too full, one too empty, two within chance": _moves([40, 8, 24, 24], 1),
            "an even load moves nothing": _moves([12, 12, 12, 12], 2, bias=[0.5, -0.5, 0.0, 1.0]),
            "far off or just off: the same step": _moves([0, 100, 30, 70], 2, rate=0.25),
            "it starts from the bias that it was given": _moves([90, 10], 1, bias=[1.0, -2.0]),
            "what chance leaves with many tokens": _moves([1000, 1060, 940, 1000], 1),
            "and what it leaves with few": _moves([10, 12, 8, 10], 1),
            "with two experts a token, chance leaves less": _moves([118, 82, 100, 100], 2),
            "every token takes every expert": _moves([7, 7, 7], 3),
            "no tokens at all": _moves([0, 0, 0], 1, bias=[1.0, 2.0, 3.0]),
            "fair lots, 16 experts": _moves(_drawn_load(2048, 16, 2, seed=0), 2),
            "fair lots and one favourite": _moves(_drawn_load(2048, 16, 2, seed=1) + 900 * torch.eye(16).long()[5], 2),
        },
        hints=(
            "First the plain rule: rate * sign(mean - load), as a new tensor. Then set the sign to 0 where the load is "
            "within chance of the mean.",
            "Chance is a cv, a share of the mean: sqrt((num_experts / top_k - 1) / tokens), and tokens is "
            "load.sum() / top_k. Without tokens nothing moves.",
            "mean = load.double().mean(); tokens = max(1, load.sum().item() / top_k); "
            "noise = mean * math.sqrt((len(load) / top_k - 1) / tokens); gap = mean - load; "
            "return bias + rate * torch.where(gap.abs() <= noise, 0.0, gap.sign()).to(bias)",
        ),
    ),
    "03.3": Exercise(
        "Diagnose a load",
        {
            "half of the experts are dead": _judges([50, 50, 0, 0], 1),
            "most are": _judges([0, 0, 98, 1, 0, 0, 1, 0], 1),
            "the same number each": _judges([64] * 16, 2),
            "one more here, one less there": _judges([65, 63] * 8, 2),
            "a quarter more or less, 100 tokens": _judges([25, 31, 19, 25], 1),
            "a quarter more or less, 100,000 tokens": _judges([25_000, 31_000, 19_000, 25_000], 1),
            "uneven, one expert dead": _judges([40, 30, 20, 10, 0], 1),
            "fair lots": _judges(_drawn_load(2048, 16, 2, seed=2), 2),
            "an eighth of the tokens, the same lots": _judges(_drawn_load(256, 16, 2, seed=3), 2),
            "two experts a token, each counts for half a token": _judges([58, 59, 41, 42], 2),
            "with three of four experts a token, less is left to chance": _judges([90, 84, 66, 60], 3),
        },
        hints=(
            "ml.measure_balance(load, top_k=top_k) knows cv, noise_floor_cv and dead.",
            "Dead experts first. Then the ratio cv / noise_floor_cv: below a half, up to two, above.",
            "b = ml.measure_balance(load, top_k=top_k); ratio = b.cv / b.noise_floor_cv; "
            "return 'collapsed' if 2 * b.dead >= len(load) else 'forced' if ratio < 0.5 else "
            "'as by chance' if ratio <= 2 else 'uneven'",
        ),
    ),
}
