"""The top-k gate as an operator: one launch forward, one backward, in any program that PyTorch can trace."""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.kernels import topk_gate as forward_kernel
from moe_lab.kernels import topk_gate_backward as backward_kernel
from moe_lab.kernels._launch import INTERPRET
from moe_lab.kernels.topk_gate import check_options
from moe_lab.operators.guards import launching, refuse_tangents
from moe_lab.types import Routing


def gate(
    logits: Float[Tensor, "tokens num_experts"],
    top_k: int,
    *,
    score: str = "softmax",
    bias: Tensor | None = None,
    renormalise: bool = False,
    scale: float | int = 1.0,
) -> Routing:
    """Send each token to its top_k best experts: `route` with method "top_k", in one Triton launch.

    Options mean what they mean there, ties go to the lower expert, and weights are differentiable in ``logits``. What
    differs: weights are float32 and so is all arithmetic (float64 logits are refused); num_experts is at most 1024;
    and no value is looked at, so that nothing waits for the GPU. Logits and bias must be finite, unchecked: a NaN is
    chosen first and becomes a NaN weight. There is no second derivative.

    Example:
        >>> routing = gate(torch.tensor([[2.0, 0.0, 1.0]]), 2, renormalise=True)
        >>> routing.experts, routing.weights
        (tensor([[0, 2]]), tensor([[0.7311, 0.2689]]))

    Raises ValueError for an unknown score, ``top_k`` outside ``1..num_experts``, a bias that is not (num_experts,),
    more than 1024 experts, and CPU tensors outside of Triton's interpreter; TypeError for other dtypes than float32,
    float16 and bfloat16, and for bfloat16 in the interpreter.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 2.1; DeepSeek-V3 (arXiv:2412.19437), section 2.1.2 (bias).
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    check_options(logits, score, renormalise, scale)
    refuse_tangents("gate", logits)
    top_k = check_whole("top_k", top_k, 1, logits.shape[1])
    weights, experts = topk_gate(logits, top_k, score, bias, renormalise, scale)
    return Routing.trusted(experts.long(), weights, logits.shape[1])


@torch.library.custom_op(
    "moe_lab::topk_gate",
    mutates_args=(),
    schema="(Tensor logits, int top_k, str score, Tensor? bias, bool renormalise, float scale) -> (Tensor, Tensor)",
)
def topk_gate(
    logits: Tensor, top_k: int, score: str, bias: Tensor | None, renormalise: bool, scale: float | int
) -> tuple[Tensor, Tensor]:
    """Weights, float32, and experts, int32, both (tokens, top_k): the kernel's launch; see `gate`."""
    options = {"score": score, "bias": bias, "renormalise": renormalise, "scale": scale}
    with launching(logits, INTERPRET):
        return forward_kernel.topk_gate(logits, top_k, **options)


@topk_gate.register_fake
def _topk_gate_shapes(logits, top_k, score, bias, renormalise, scale):
    form = logits.shape[0], top_k
    return logits.new_empty(form, dtype=torch.float32), logits.new_empty(form, dtype=torch.int32)


@torch.library.custom_op(
    "moe_lab::topk_gate_backward",
    mutates_args=(),
    schema="(Tensor dweights, Tensor logits, Tensor experts, str score, bool renormalise, float scale) -> Tensor",
)
def topk_gate_backward(
    dweights: Tensor, logits: Tensor, experts: Tensor, score: str, renormalise: bool, scale: float | int
) -> Tensor:
    """The gradient of the logits, (tokens, num_experts) in their dtype: the kernel's launch."""
    options = {"score": score, "renormalise": renormalise, "scale": scale}
    with launching(logits, INTERPRET):
        return backward_kernel.topk_gate_backward(dweights, logits, experts, **options)


@topk_gate_backward.register_fake
def _topk_gate_backward_shapes(dweights, logits, experts, score, renormalise, scale):
    return logits.new_empty(logits.shape)


def _keep(ctx, inputs, output):
    logits, _, ctx.score, _, ctx.renormalise, ctx.scale = inputs
    ctx.save_for_backward(logits, output[1])


def _backward(ctx, dweights, _):
    dlogits = topk_gate_backward(dweights, *ctx.saved_tensors, ctx.score, ctx.renormalise, ctx.scale)
    return dlogits, None, None, None, None, None


topk_gate.register_autograd(_backward, setup_context=_keep)
