"""Suite "routers": what routing costs, against ``torch.topk`` and against the layer that it routes for."""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lab.balancers import PriceBalancer
from moe_lab.bench.record import Case
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.experts import expert_mlp
from moe_lab.inputs import make_layer_inputs, make_router_logits
from moe_lab.profiling import time_interleaved
from moe_lab.routers import route
from moe_lab.types import Routing

SHAPES = [
    # tokens, experts, top_k: growth with tokens, then with experts, then one expert a token
    (1024, 64, 8),
    (4096, 64, 8),
    (16384, 64, 8),
    (4096, 8, 2),
    (4096, 256, 8),
    (4096, 64, 1),
]
LAYER = {"tokens": 4096, "d_model": 1024, "d_expert": 512, "num_experts": 64, "top_k": 8}


def routers(quick: bool = False) -> list[Case]:
    """One case a shape, and the layer."""
    shapes = [(256, 8, 2)] if quick else SHAPES
    layer = {**LAYER, "tokens": 64, "d_model": 32, "d_expert": 16} if quick else LAYER
    repeats = 3 if quick else 15
    compared = [Case(str(s), lambda _, s=s: compare_routers(*s, repeats)) for s in shapes]
    return [*compared, Case("layer", lambda _: compare_layer(layer, repeats))]


def compare_routers(tokens: int, num_experts: int, top_k: int, repeats: int) -> list[Measured]:
    """Every router on the same correlated logits, beside the bare selection."""
    logits = make_router_logits(tokens, num_experts, seed=1)
    bias = learned_bias(tokens, num_experts, top_k)
    functions: dict[str, Callable[[], object]] = {
        "torch.topk": lambda: logits.topk(top_k, dim=1),
        "softmax + torch.topk": lambda: logits.softmax(dim=1).topk(top_k, dim=1),
        "top_k": lambda: route(logits, top_k),
        "balanced, warm": lambda: route(logits, top_k, "balanced", bias=bias),
        "balanced, cold": lambda: route(logits, top_k, "balanced"),
        "balanced_causal": lambda: route(logits, top_k, "balanced_causal", bias=bias, group_size=min(512, tokens)),
        "sinkhorn": lambda: route(logits, top_k, "sinkhorn"),
        "expert_choice": lambda: route(logits, top_k, "expert_choice"),
    }
    if top_k == 1:
        functions["base"] = lambda: route(logits, 1, "base")
    errors = {name: _error(name, function(), logits, top_k) for name, function in functions.items()}
    shape = {"tokens": tokens, "num_experts": num_experts, "top_k": top_k}
    timings = time_interleaved(functions, repeats=repeats)
    return [
        Measured(name, "forward", shape, "float32", error=errors[name], tolerance=0.0, **as_percentiles(t))
        for name, t in timings.items()
    ]


def compare_layer(shape: dict[str, int], repeats: int) -> list[Measured]:
    """The experts' forward pass, in bfloat16: the yardstick of what routing may cost."""
    inputs = make_layer_inputs(**shape, dtype=torch.bfloat16)
    logits = make_router_logits(shape["tokens"], shape["num_experts"], seed=1)
    bias, top_k = learned_bias(shape["tokens"], shape["num_experts"], shape["top_k"]), shape["top_k"]
    reference = expert_mlp(*inputs.arguments, backend="loop").double()
    found = expert_mlp(*inputs.arguments, backend="grouped").double()
    error = float((found - reference).norm() / reference.norm())
    functions = {
        "expert_mlp, grouped": lambda: expert_mlp(*inputs.arguments, backend="grouped"),
        "balanced, warm": lambda: route(logits, top_k, "balanced", bias=bias),
        "balanced, cold": lambda: route(logits, top_k, "balanced"),
    }
    timings = time_interleaved(functions, repeats=repeats)
    return [
        Measured(
            name,
            "forward",
            shape,
            "bfloat16",
            error=error if "mlp" in name else 0.0,
            tolerance=2e-2,
            **as_percentiles(t),
        )
        for name, t in timings.items()
    ]


def learned_bias(tokens: int, num_experts: int, top_k: int) -> Tensor:
    """What a balancer knows after eight other batches: the warm start."""
    balancer = PriceBalancer(num_experts)
    for seed in range(2, 10):
        balancer.update(make_router_logits(tokens, num_experts, seed=seed), top_k)
    return balancer.bias


def _error(name: str, result: object, logits: Tensor, top_k: int) -> float:
    """Whole numbers that must be 0: loads that are not even where they are promised to be, tokens short of experts."""
    if not isinstance(result, Routing):
        return 0.0
    num_experts, asked = logits.shape[1], len(logits) * top_k
    marks = torch.zeros(len(logits), num_experts + 1).scatter(1, result.experts + 1, 1.0)[:, 1:]  # twice counts once
    short = 0 if name == "expert_choice" else asked - int(marks.sum())
    spread = int(result.load.max() - result.load.min())
    promised = name.startswith(("balanced", "base", "expert_choice"))
    return float(short + (max(0, spread - (asked % num_experts > 0)) if promised else 0))
