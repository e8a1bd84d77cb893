"""Backward of the top-k gate: from the gradient of the weights to that of the logits, in one launch.

    c = the scores of the chosen experts, 0 elsewhere            S = sum(c)
    weights = scale * c              dc = scale * dweights
    renormalised: scale * c / S      dc = scale * (dweights - sum(dweights * c) / S) / S       (S + 1e-20 for S)

    softmax              dlogits = p * (dc - sum(dc * p))          p: all experts, the unchosen ones get a gradient too
    sigmoid              dlogits = dc * s * (1 - s)
    softmax_after_top_k  dlogits = c * (dc - sum(dc * c))          only the chosen ones

    one program = BLOCK_TOKENS rows, whole, in registers; dweights are spread over them, slot by slot:

                       slot 0  slot 1                e0   e1   e2   e3   e4   e5   pad  pad
        experts[t]    |  1   |   3   |     -->      | 0  | g0 | 0  | g1 | 0  | 0  | -- | -- |
        dweights[t]   |  g0  |   g1  |

The selection has no gradient. Every element of dlogits has one author and sums go by rows, so the result is the same
bits each time.

Traffic: logits are read and dlogits written once, 2 * tokens * num_experts * itemsize bytes, and 8 * tokens * top_k
bytes of experts and dweights are read; no matrix product. Memory limits it. Scores are computed again: to keep them
would cost 4 * tokens * num_experts bytes more in the forward, and as many here.
Source: derivatives of the formulas in `topk_gate`.
"""

import torch
import triton
import triton.language as tl

from . import topk_gate as gate
from ._launch import DTYPES, check_places, check_tensors, normal
from .topk_gate import block_of, check_options, score_reference, sigmoid, weigh_reference


def topk_gate_backward_reference(dweights, logits, experts, *, score="softmax", renormalise=False, scale=1.0):
    """The same result by PyTorch's autograd through the forward reference, its experts given."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        weights = weigh_reference(score_reference(leaf, score), experts, score, renormalise, scale)
        return torch.autograd.grad(weights, leaf, dweights.to(weights.dtype))[0]


@triton.jit
def _topk_gate_backward_kernel(
    dweights,  # float32 (tokens, TOP_K)
    logits,  # (tokens, NUM_EXPERTS)
    experts,  # int32 (tokens, TOP_K); -1 for an empty slot
    dlogits,  # (tokens, NUM_EXPERTS)
    tokens,
    scale,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,  # NUM_EXPERTS up to a power of two
):
    # 1. Which tokens are mine? Past the last token its row is read again, and nothing is written.
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    real = column < NUM_EXPERTS
    place = row[:, None] * NUM_EXPERTS + column
    x = tl.load(logits + place, mask=real, other=float("-inf")).to(tl.float32)
    # 2. Which slot names each expert, if any, and what is its gradient?
    slot = tl.full((BLOCK_TOKENS, COLUMNS), -1, tl.int32)
    for j in tl.range(0, TOP_K):
        slot = tl.where(column == tl.load(experts + row * TOP_K + j)[:, None], j, slot)
    chosen = slot >= 0
    g = tl.load(dweights + row[:, None] * TOP_K + slot, mask=chosen, other=0.0)
    # 3. The scores once more: of all experts, or of the chosen ones.
    if SCORE == "sigmoid":
        scores = sigmoid(x)
    else:
        if SCORE == "softmax_after_top_k":
            x = tl.where(chosen, x, float("-inf"))
        scores = tl.exp(x - tl.max(x, axis=1)[:, None])
        scores = scores / tl.sum(scores, axis=1)[:, None]
    # 4. Back through scale and renormalisation, to the scores of the chosen ones.
    if RENORMALISE:
        c = tl.where(chosen, scores, 0.0)
        total = tl.sum(c, axis=1)[:, None] + 1e-20
        g = (g - tl.sum(g * c, axis=1)[:, None] / total) / total
    dscores = tl.where(chosen, g * scale, 0.0)
    # 5. Back to the logits: 1 - sigmoid(x) is sigmoid(-x), which does not cancel.
    if SCORE == "sigmoid":
        result = dscores * scores * sigmoid(-x)
    else:
        result = scores * (dscores - tl.sum(dscores * scores, axis=1)[:, None])
    if SCORE == "softmax_after_top_k":
        result = tl.where(chosen, result, 0.0)  # a token that chose nobody has divided 0 by 0
    # 6. Round once, on the way out.
    tl.store(dlogits + place, result.to(dlogits.dtype.element_ty), mask=real & (token < tokens)[:, None])


def topk_gate_backward(dweights, logits, experts, *, score="softmax", renormalise=False, scale=1.0):
    """The gradient of the logits, (tokens, num_experts) in their dtype, from that of `topk_gate`'s weights.

    ``experts`` are those that the forward chose, with the same options; an empty slot (-1) passes nothing on. Nothing
    waits for the GPU.
    """
    check_places(logits=logits)
    check_options(logits, score, renormalise, scale)
    check_tensors(logits=logits)
    check_tensors((torch.int32,), experts=experts)
    check_tensors((torch.float32,), dweights=dweights)
    check_tensors((*DTYPES, torch.int32), logits=logits, experts=experts, dweights=dweights)  # on one device
    tokens, num_experts = logits.shape
    if experts.dim() != 2 or experts.shape != dweights.shape or experts.shape[0] != tokens:
        given = f"{tuple(dweights.shape)} and {tuple(experts.shape)}"
        raise ValueError(f"dweights and experts must both be ({tokens}, top_k), got {given}")
    logits = logits.contiguous()
    dlogits = logits.new_empty(logits.shape)
    block_tokens, columns = block_of(num_experts)
    _topk_gate_backward_kernel[(triton.cdiv(tokens, block_tokens),)](
        dweights.contiguous(),
        logits,
        experts.contiguous(),
        dlogits,
        tokens,
        float(scale),
        NUM_EXPERTS=num_experts,
        TOP_K=experts.shape[1],
        SCORE=score,
        RENORMALISE=renormalise,
        BLOCK_TOKENS=block_tokens,
        COLUMNS=columns,
        num_warps=8,  # half the registers a thread that the forward has, since three matrices live here at once
    )
    return dlogits


# What tests, benchmarks and lessons share.
SHAPES = gate.SHAPES


VARIANTS = {
    "deepseek": dict(num_experts=256, score="sigmoid", renormalise=True),
    "gpt_oss": dict(score="softmax_after_top_k"),
    "widest": dict(num_experts=gate.MOST_EXPERTS),
}
"""Other ways to launch it, which are compiled as well: options of `topk_gate_backward`, or of `make_inputs`."""


def make_inputs(tokens, num_experts, top_k, *, dtype, device, seed=0):
    """Random gradients of the weights, logits, and the experts that the forward chooses; on "meta" only shapes."""
    logits, _ = gate.make_inputs(tokens, num_experts, top_k, dtype=dtype, device=device, seed=seed)
    dweights = normal(tokens, top_k, seed=seed + 1, dtype=torch.float32, device=device)
    return dweights, logits, gate.topk_gate_reference(logits, top_k)[1]


def cost(tokens, num_experts, top_k, *, itemsize):
    """(FLOPs of matrix products, bytes) that any implementation must spend."""
    return 0, tokens * (2 * num_experts * itemsize + top_k * 8)
