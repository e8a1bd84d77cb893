"""Exercises of lesson 02: what moving tokens costs, where they stand, the way back, and what a fast part gains."""

import torch
from torch import Tensor

from moe_lab.dispatch import assign_places, one_hot_flops, table_combine
from moe_lab.exercises import Exercise, Property
from moe_lab.routers import expert_capacity
from moe_lab.types import Routing

NAN = float("nan")


def _says(yours: object, spec: object, case: str = "") -> str | None:
    """None if they are equal, else both."""
    return None if yours == spec else f"yours {yours}, spec {spec}{case}"


# 02.1 -----------------------------------------------------------------------------------------------------------------


def _costs(tokens: int, num_experts: int, top_k: int, capacity_factor: float, d_model: int) -> Property:
    def holds(answer) -> str | None:
        capacity = expert_capacity(capacity_factor, tokens, top_k, num_experts)
        spec = one_hot_flops(tokens, num_experts, capacity, d_model)
        yours = answer(tokens, num_experts, top_k, capacity_factor, d_model)
        case = (
            f" for {tokens} tokens, {num_experts} experts, top_k {top_k}, factor {capacity_factor}, d_model {d_model}"
        )
        return _says(yours, spec, case)

    return holds


def _grows(factor: int, **change: int) -> Property:
    """The answer for the changed sizes is ``factor`` times the answer for the sizes before."""

    def holds(answer) -> str | None:
        sizes = {"tokens": 512, "num_experts": 8, "top_k": 1, "capacity_factor": 1.0, "d_model": 16}
        before, after = answer(*sizes.values()), answer(*(sizes | change).values())
        return _says(after / before, float(factor), f" times as much, from {before} to {after}")

    return holds


# 02.2 -----------------------------------------------------------------------------------------------------------------


def _expected_places(wanted: Tensor, num_experts: int, capacity: int) -> list[int]:
    """One token after the other, as at a counter."""
    taken, places = [0] * num_experts, []
    for expert in wanted.tolist():
        full = taken[expert] == capacity
        places.append(-1 if full else expert * capacity + taken[expert])
        taken[expert] += not full
    return places


def _placed(answer, wanted: Tensor, num_experts: int, capacity: int) -> list[int]:
    yours = answer(wanted.clone(), num_experts, capacity)
    if not isinstance(yours, Tensor) or yours.shape != wanted.shape:
        got = tuple(yours.shape) if isinstance(yours, Tensor) else type(yours).__name__
        raise TypeError(f"the answer must be a tensor {tuple(wanted.shape)}, got {got}")
    return yours.tolist()


def _places(wanted: list[int] | Tensor, num_experts: int, capacity: int) -> Property:
    wanted = torch.as_tensor(wanted, dtype=torch.int64)

    def holds(answer) -> str | None:
        yours, spec = _placed(answer, wanted, num_experts, capacity), _expected_places(wanted, num_experts, capacity)
        if len(spec) <= 12:
            return _says(yours, spec, f" for wanted {wanted.tolist()}, capacity {capacity}")
        wrong = [token for token, (ours, right) in enumerate(zip(yours, spec, strict=True)) if ours != right]
        if not wrong:
            return None
        first = wrong[0]
        return f"{len(wrong)} of {len(spec)} tokens; token {first}: yours {yours[first]}, spec {spec[first]}"

    return holds


def _nobody_shares(answer) -> str | None:
    wanted = _random_wish(tokens=64, num_experts=4, seed=2)
    places = [place for place in _placed(answer, wanted, 4, 10) if place >= 0]
    shared = sorted({place for place in places if places.count(place) > 1})
    return f"places {shared[:5]} have more than one token, spec none" if shared else None


def _agrees_with_the_library(answer) -> str | None:
    wanted = _random_wish(tokens=200, num_experts=8, seed=3)
    capacity = int(wanted.bincount(minlength=8).max())
    spec = assign_places(Routing(wanted[:, None], torch.ones(200, 1), 8), capacity).flatten().tolist()
    wrong = sum(yours != right for yours, right in zip(_placed(answer, wanted, 8, capacity), spec, strict=True))
    return f"yours differs for {wrong} of 200 tokens, spec 0" if wrong else None


def _random_wish(tokens: int, num_experts: int, seed: int) -> Tensor:
    return torch.randint(num_experts, (tokens,), generator=torch.Generator().manual_seed(seed))


# 02.3 -----------------------------------------------------------------------------------------------------------------


def _combines(outputs: list, places: list, weights: list) -> Property:
    arguments = torch.tensor(outputs), torch.tensor(places), torch.tensor(weights)

    def holds(answer) -> str | None:
        yours, spec = answer(*(a.clone() for a in arguments)), table_combine(*arguments)
        if tuple(yours.shape) != tuple(spec.shape):
            return f"yours has shape {tuple(yours.shape)}, spec {tuple(spec.shape)}"
        close = torch.allclose(yours, spec, atol=1e-5)
        return None if close else f"yours {yours.tolist()}, spec {spec.tolist()} for places {places}, weights {weights}"

    return holds


def _random_return() -> tuple[Tensor, Tensor, Tensor]:
    """Answers of 4 experts with 6 places each for 10 tokens of two slots, three of them empty."""
    draw = torch.Generator().manual_seed(4)
    outputs, weights = torch.randn(4, 6, 5, generator=draw), torch.rand(10, 2, generator=draw)
    places = torch.randperm(24, generator=draw)[:20].view(10, 2)
    empty = torch.zeros(10, 2, dtype=torch.bool)
    empty[0, 1] = empty[7, 0] = empty[7, 1] = True
    return outputs, places.masked_fill(empty, -1), weights.masked_fill(empty, 0.0)


def _agrees_at_random(answer) -> str | None:
    outputs, places, weights = _random_return()
    error = float((answer(outputs, places, weights) - table_combine(outputs, places, weights)).abs().max())
    return None if error < 1e-5 else f"yours is off by up to {error:.3g}, spec at most 1e-05"


def _router_learns(answer) -> str | None:
    outputs, places, weights = _random_return()
    weights.requires_grad_()
    y = answer(outputs, places, weights)
    if not y.requires_grad:
        return "no gradient reaches the weights, so the router would never learn"
    (yours,) = torch.autograd.grad(y.sum(), weights)
    (spec,) = torch.autograd.grad(table_combine(outputs, places, weights).sum(), weights)
    error = float((yours - spec).abs().max())
    return None if error < 1e-5 else f"the gradient of the weights is off by up to {error:.3g}, spec at most 1e-05"


# 02.4 -----------------------------------------------------------------------------------------------------------------


def _gains(moving_ms: float, experts_ms: float, times_faster: float) -> Property:
    def holds(answer) -> str | None:
        spec = (moving_ms + experts_ms) / (moving_ms / times_faster + experts_ms)
        yours = answer(moving_ms, experts_ms, times_faster)
        if abs(yours - spec) < 1e-6 * spec:
            return None
        return f"yours {yours:.4g}, spec {spec:.4g} for {moving_ms} ms, {experts_ms} ms, {times_faster} times faster"

    return holds


EXERCISES = {
    "02.1": Exercise(
        "Count the FLOPs of one-hot dispatch and combine",
        {
            "6 tokens, 3 experts, factor 1, d_model 2": _costs(6, 3, 1, 1.0, 2),
            "a place more when the division leaves a rest": _costs(10, 4, 1, 1.25, 8),
            "top-2 asks for twice the places": _costs(64, 8, 2, 1.0, 32),
            "the capacity factor buys places": _costs(64, 8, 1, 1.5, 32),
            "a place an expert at least": _costs(5, 64, 1, 1.0, 4),
            "twice the tokens, four times the work": _grows(4, tokens=1024),
            "twice the experts, the same work": _grows(1, num_experts=16),
        },
        hints=(
            "First the capacity, as in lesson 01: capacity_factor * tokens * top_k / num_experts, rounded up.",
            "Every token meets every place of every expert, in each of d_model numbers: once on the way there, once on "
            "the way back. A multiply-add is 2 FLOPs.",
            "capacity = math.ceil(capacity_factor * tokens * top_k / num_experts); "
            "return 4 * tokens * num_experts * capacity * d_model",
        ),
    ),
    "02.2": Exercise(
        "Give every token its place",
        {
            "six tokens, three experts, two places each": _places([1, 0, 1, 2, 1, 0], 3, 2),
            "room for all": _places([2, 2, 0, 2], 3, 3),
            "one expert, and only the first two find room": _places([0, 0, 0, 0], 1, 2),
            "an expert that nobody wants": _places([3, 0, 3], 4, 2),
            "no place has two tokens": _nobody_shares,
            "no tokens": _places([], 2, 1),
            "a thousand tokens, 16 experts": _places(_random_wish(1000, 16, seed=1), 16, 60),
            "the library's places, where nothing overflows": _agrees_with_the_library,
        },
        hints=(
            "A token's position is the number of earlier tokens that want the same expert.",
            "torch.nn.functional.one_hot(wanted, num_experts) has a row a token and a column an expert. A cumulative "
            "sum down the tokens counts arrivals; a token reads its own expert's column, minus itself.",
            "arrivals = F.one_hot(wanted, num_experts).cumsum(dim=0); "
            "position = arrivals.gather(1, wanted[:, None])[:, 0] - 1; "
            "return torch.where(position < capacity, wanted * capacity + position, -1)",
        ),
    ),
    "02.3": Exercise(
        "Carry the answers back",
        {
            "one answer, half the weight": _combines([[[4.0]], [[6.0]]], [[1]], [[0.5]]),
            "two slots add up": _combines([[[1.0, 2.0]], [[10.0, 20.0]]], [[0, 1]], [[0.75, 0.25]]),
            "a dropped token gets 0": _combines([[[4.0]], [[6.0]]], [[0], [-1]], [[0.5], [0.0]]),
            "even if the router left it a weight": _combines([[[4.0]], [[6.0]]], [[1], [-1]], [[0.5], [0.7]]),
            "a dropped token reads nobody's NaN": _combines([[[NAN]], [[6.0]], [[NAN]]], [[1], [-1]], [[1.0], [0.0]]),
            "ten tokens, four experts, three slots empty": _agrees_at_random,
            "the router learns from it": _router_learns,
        },
        hints=(
            "Places count through all experts: flatten the first two dimensions of the answers and look rows up.",
            "In Python an index of -1 is the last row. Read some row for it (places.clamp_min(0)), then put 0 there "
            "with masked_fill: multiplying by 0 would keep a NaN.",
            "rows = expert_outputs.flatten(0, 1)[places.clamp_min(0)].masked_fill((places < 0)[..., None], 0.0); "
            "return (weights[..., None] * rows).sum(dim=1)",
        ),
    ),
    "02.4": Exercise(
        "Predict what a faster part gains the whole",
        {
            "30 ms of moving, 70 ms of experts, 6 times faster": _gains(30.0, 70.0, 6.0),
            "no faster, no gain": _gains(12.0, 30.0, 1.0),
            "nothing but moving: all of it": _gains(20.0, 0.0, 6.0),
            "nothing to move: no gain": _gains(0.0, 20.0, 6.0),
            "a million times faster: the experts remain": _gains(50.0, 50.0, 1e6),
            "slower instead": _gains(10.0, 30.0, 0.5),
        },
        hints=(
            "Write the time before and the time after; the gain is before / after.",
            "Only the moving shrinks, to moving_ms / times_faster. The experts take what they took.",
            "return (moving_ms + experts_ms) / (moving_ms / times_faster + experts_ms)",
        ),
    ),
}
