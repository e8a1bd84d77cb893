"""Whether an implementation is right: its answer and every gradient against the specification in float64.

A wrong row among 32768 moves the relative Frobenius norm by less than bfloat16's rounding does. So the worst row counts
as well, against its own size or the typical one, whichever is larger.
"""

import torch
from torch import Tensor

from moe_lab.bench.peers.interface import DIRECTIONS, Prepared
from moe_lab.experts import expert_mlp
from moe_lab.inputs import LayerInputs
from moe_lab.types import Routing

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Allowed of ‖found - wanted‖ / ‖wanted‖."""

WORST_ROW = 5
"""How many times as far as the whole a row may be off: the largest of a million roundings is at 5 sigma."""

VECTORS = 8
"""Random vectors that a gradient of a matrix is multiplied by; one alone would miss one wrong row in ten or so."""


def reference_of(inputs: LayerInputs, directions: tuple[str, ...] = DIRECTIONS) -> dict[str, Tensor]:
    """What a right implementation gives: "y", and the gradients "x", "weights", "w_gate_up", "w_down".

    It is ``backend="loop"`` in float64, one expert at a time, so that no second copy of all matrices is needed. For the
    same reason the gradients of the matrices are kept as products with `VECTORS` random vectors, as many numbers for
    each row: relative errors stay what they are, give or take chance, and what is wrong in a row shows in its numbers.

    Example:
        >>> from moe_lab.inputs import make_layer_inputs
        >>> reference = reference_of(make_layer_inputs(6, 8, 4, num_experts=3, top_k=2))
        >>> {name: tuple(values.shape) for name, values in reference.items()}
        {'y': (6, 8), 'x': (6, 8), 'weights': (6, 2), 'w_gate_up': (3, 8, 8), 'w_down': (3, 8, 8)}
    """
    routing, exact = inputs.routing, {"device": inputs.x.device, "dtype": torch.float64}
    backward = "forward+backward" in directions
    wanted = {"y": torch.zeros(inputs.x.shape, **exact)}
    if backward:
        wanted |= {"x": torch.zeros(inputs.x.shape, **exact), "weights": torch.zeros(routing.weights.shape, **exact)}
        for name in ("w_gate_up", "w_down"):
            wanted[name] = torch.zeros(*getattr(inputs, name).shape[:2], VECTORS, **exact)
    for expert in range(routing.num_experts):
        token, slot = (routing.experts == expert).nonzero(as_tuple=True)
        leaves = [inputs.x[token], routing.weights[token, slot, None], inputs.w_gate_up[expert], inputs.w_down[expert]]
        x, weight, w_gate_up, w_down = leaves = [leaf.double().requires_grad_(backward) for leaf in leaves]
        alone = Routing.trusted(torch.zeros_like(token)[:, None], weight, 1)
        y = expert_mlp(x, alone, w_gate_up[None], w_down[None], backend="loop")
        wanted["y"].index_add_(0, token, y.detach())
        if backward:
            dx, dweight, dw_gate_up, dw_down = torch.autograd.grad(y, leaves, inputs.dy[token].double())
            wanted["x"].index_add_(0, token, dx)
            wanted["weights"][token, slot] = dweight[:, 0]
            wanted["w_gate_up"][expert], wanted["w_down"][expert] = _sample(dw_gate_up), _sample(dw_down)
    return wanted


def verify(
    prepared: Prepared,
    inputs: LayerInputs,
    directions: tuple[str, ...] = DIRECTIONS,
    reference: dict[str, Tensor] | None = None,
) -> tuple[float, float]:
    """The largest error of the answer and, where asked for, of every gradient; and what is allowed.

    ``reference`` is ``reference_of(inputs)``, made once for all implementations; what computes a layer of its own is
    held against that. An answer of another shape, one that is not finite, or a missing gradient is off by infinity.
    """
    if prepared.own is not None or reference is None:
        reference = reference_of(prepared.own or inputs, directions)
    found = {}
    if "forward+backward" in directions:
        found = prepared.gradients_as_ours(prepared.forward_backward())
        found |= {name: torch.stack([_sample(one) for one in found[name]]) for name in ("w_gate_up", "w_down")}
    with torch.no_grad():
        found["y"] = prepared.forward()
    names = ["y", "x", "weights", "w_gate_up", "w_down"][: 5 if "forward+backward" in directions else 1]
    fixed = () if prepared.own is None else ("weights",)  # a dense layer has no routing weights
    errors = [relative_error(found.get(name), reference[name]) for name in names if name not in fixed]
    return max(errors), TOLERANCES[inputs.x.dtype]


def relative_error(found: Tensor | None, wanted: Tensor) -> float:
    """The larger of ‖found - wanted‖ / ‖wanted‖ and the worst row's share of it, see `WORST_ROW`.

    Example:
        >>> wanted = torch.ones(32768, 2)
        >>> found = wanted.clone()
        >>> found[7] = -1.0
        >>> round(float((found - wanted).norm() / wanted.norm()), 3), relative_error(found, wanted)
        (0.011, 0.4)
    """
    if found is None or found.shape != wanted.shape:
        return float("inf")
    found, wanted = found.detach().double(), wanted.double()
    if not bool(found.isfinite().all()):
        return float("inf")
    if not wanted.numel():
        return 0.0
    off, size = (found - wanted).norm(dim=-1), wanted.norm(dim=-1)
    typical = size.square().mean().sqrt()
    if float(typical) == 0.0:  # nothing was asked for: so nothing may come
        return 0.0 if float(off.max()) == 0.0 else float("inf")
    whole = off.square().mean().sqrt() / typical
    return max(float(whole), float((off / size.clamp_min(typical)).max()) / WORST_ROW)


def _sample(matrix: Tensor) -> Tensor:
    """Each row's products with vectors of N(0, 1), always the same, in float64."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(matrix.shape[1], VECTORS, generator=draw, dtype=torch.float64)
    return matrix.double() @ vectors.to(matrix.device)
