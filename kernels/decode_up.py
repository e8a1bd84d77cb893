"""Decode, up: the first product of every expert for a handful of tokens, without sorting anything.

    a[t, s] = weight[t, s] * silu(g) * u        [g; u] = w[e] @ x[t],  e = experts[t, s]

    one program = one assignment x BLOCK_N columns of gate and up

    x[t]  [=====]          w[e] gate [======]  BLOCK_N rows, read once, used for one token, and forgotten
                           w[e] up   [======]

With few tokens an expert has one row or none: a matrix product would multiply padding, and sorting would take longer
than the work. What takes the time is reading the weights, so each program streams its own. Two tokens on one expert
read it twice (the second time likely from the L2 cache): beyond about one row an expert, use the sorted path.

Traffic: 2 * tokens * top_k * d_model * 2 * d_expert FLOPs, tokens * top_k * 2 * d_expert * d_model weights read: one
FLOP a byte in bfloat16, limited by memory whatever the arithmetic.
Source: batched_mm of Transformers' experts, without its copy of the weights.
"""

import torch
import triton
import triton.language as tl

from ._activations import activate_reference, apply_function, find_function
from ._inputs import make_routing
from ._launch import INTERPRET, check_dims, check_places, check_tensors, normal

BLOCK_N, BLOCK_K = (16, 32) if INTERPRET else (16, 256)


def decode_up_reference(x, w, experts, weights, activation="swiglu"):
    """The same results by gathering whole matrices. An empty slot gives 0."""
    chosen = w[experts.clamp_min(0).long()]  # (tokens, slots, columns, d_model)
    hidden = torch.einsum("tsnd,td->tsn", chosen, x)
    return activate_reference(hidden, activation) * torch.where(experts >= 0, weights, 0.0).to(x.dtype)[..., None]


@triton.jit
def _decode_up_kernel(
    x,  # (tokens, K)
    w,  # (num_experts, HALVES * D_EXPERT, K)
    experts,  # (tokens * slots,), -1 for an empty slot
    weights,  # float32 (tokens * slots,)
    a,  # (tokens * slots, D_EXPERT)
    slots,
    num_experts,
    K: tl.constexpr,
    D_EXPERT: tl.constexpr,
    FUNCTION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    HALVES: tl.constexpr = 2 if GATED else 1
    # 1. Which assignment is mine, and which columns of its expert?
    assignment = tl.program_id(0)
    expert = tl.load(experts + assignment).to(tl.int64)
    expert = tl.where(expert < num_experts, expert, -1)  # what is no expert is an empty slot, as in `sort_tokens`
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < D_EXPERT
    token = (assignment // slots).to(tl.int64)
    matrix = w + expert * (HALVES * D_EXPERT * K) + columns.to(tl.int64)[:, None] * K
    # 2. Stream the weights; products and sums in float32, on ordinary arithmetic units. An empty slot reads nothing.
    gate = tl.zeros((BLOCK_N,), tl.float32)
    up = tl.zeros((BLOCK_N,), tl.float32)
    for k in tl.range(0, K, BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        values = tl.load(x + token * K + inner, mask=inner < K, other=0.0).to(tl.float32)
        mask = inside[:, None] & (inner < K)[None, :] & (expert >= 0)
        gate += tl.sum(tl.load(matrix + inner, mask=mask, other=0.0).to(tl.float32) * values, axis=1)
        if GATED:
            below = tl.load(matrix + D_EXPERT * K + inner, mask=mask, other=0.0)
            up += tl.sum(below.to(tl.float32) * values, axis=1)
    # 3. Activation and routing weight; round once, on the way out.
    result = apply_function(gate, FUNCTION)
    if GATED:
        result *= up
    result *= tl.load(weights + assignment, mask=expert >= 0, other=0.0)
    place = a + assignment.to(tl.int64) * D_EXPERT + columns
    tl.store(place, tl.where(expert >= 0, result, 0.0).to(a.dtype.element_ty), mask=inside)


def decode_up(x, w, experts, weights, activation="swiglu"):
    """(tokens, d_model) -> (tokens, slots, d_expert), activated and weighted; 0 in empty slots.

    ``w`` is (num_experts, 2 * d_expert, d_model) = [gate; up], or (num_experts, d_expert, d_model) without a gate;
    ``experts`` and ``weights`` are a routing's (tokens, slots).
    """
    function, gated = find_function(activation)
    check_tensors(x=x, w=w)
    check_places(x=x, experts=experts, weights=weights)
    check_dims(2, x=x, experts=experts)
    check_dims(3, w=w)
    halves = 2 if gated else 1
    if x.dtype != w.dtype or x.shape[1] != w.shape[2] or w.shape[1] % halves:
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype} and w {tuple(w.shape)} {w.dtype}: they do not fit")
    if experts.shape != weights.shape or experts.shape[0] != x.shape[0]:
        raise ValueError(
            f"x has {x.shape[0]} tokens, experts are {tuple(experts.shape)} and weights "
            f"{tuple(weights.shape)}: they do not fit"
        )
    tokens, slots = experts.shape
    d_expert = w.shape[1] // halves
    a = x.new_empty(tokens, slots, d_expert)
    if a.numel():
        _decode_up_kernel[(tokens * slots, triton.cdiv(d_expert, BLOCK_N))](
            x.contiguous(),
            w.contiguous(),
            experts.contiguous().view(-1),
            weights.float().contiguous().view(-1),
            a,
            slots=slots,
            num_experts=w.shape[0],
            K=x.shape[1],
            D_EXPERT=d_expert,
            FUNCTION=function,
            GATED=gated,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            num_warps=4,
        )
    return a


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=3, d_model=40, d_expert=24, num_experts=4, top_k=2),
    "one_token": dict(tokens=1, d_model=24, d_expert=16, num_experts=4, top_k=3),
    "odd": dict(tokens=2, d_model=97, d_expert=47, num_experts=5, top_k=5),
    "one_expert": dict(tokens=4, d_model=32, d_expert=40, num_experts=1, top_k=1),
    "qwen3": dict(tokens=4, d_model=2048, d_expert=768, num_experts=128, top_k=8),
    "mixtral": dict(tokens=2, d_model=4096, d_expert=14336, num_experts=8, top_k=2),
}


VARIANTS = {"geglu": dict(activation="geglu"), "ungated": dict(activation="gelu")}
"""Other ways to launch it, which are compiled as well: options of `decode_up`."""


def make_inputs(tokens, d_model, d_expert, num_experts, top_k, *, dtype, device, seed=0):
    """Tokens of order 1, SwiGLU's weights, a routing with an empty expert and empty slots."""
    experts, weights = make_routing(tokens, num_experts, top_k, seed=seed)
    x = normal(tokens, d_model, seed=seed, dtype=dtype, device=device)
    w = normal(num_experts, 2 * d_expert, d_model, seed=seed + 1, dtype=dtype, device=device, scale=d_model**-0.5)
    return x, w, experts.to(device), weights.to(device)


def cost(tokens, d_model, d_expert, num_experts, top_k, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend, if no two tokens share an expert."""
    rows = tokens * top_k
    numbers = tokens * d_model + min(rows, num_experts) * 2 * d_expert * d_model + rows * d_expert
    return 2 * rows * d_model * 2 * d_expert, itemsize * numbers
