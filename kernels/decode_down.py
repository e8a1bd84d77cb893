"""Decode, down: the second product of every expert for a handful of tokens, and their sum, in one launch.

    y[t] = sum over slots s of  w[e] @ a[t, s],   e = experts[t, s]          (a holds the routing weight already)

    one program = one token x BLOCK_N columns of y; it visits the token's slots one after the other

    a[t]  [ s0 | s1 | s2 ]     w[e0] [====]  w[e1] [====]  w[e2] [====]   ->  y[t] [====]

The sum over slots stays in the registers, so there is nothing to combine afterwards, nothing to lock, and the order of
additions is fixed.

Traffic: 2 * tokens * top_k * d_expert * d_model FLOPs, as many weights read: limited by memory.
Source: as `decode_up`.
"""

import torch
import triton
import triton.language as tl

from ._inputs import make_routing
from ._launch import INTERPRET, check_dims, check_places, check_tensors, normal

BLOCK_N, BLOCK_K = (16, 32) if INTERPRET else (16, 256)


def decode_down_reference(a, w, experts):
    """The same sums by gathering whole matrices. A token with empty slots only gets 0."""
    answers = torch.einsum("tsdf,tsf->tsd", w[experts.clamp_min(0).long()], a)
    return torch.where((experts >= 0)[..., None], answers, 0.0).sum(dim=1)


@triton.jit
def _decode_down_kernel(
    a,  # (tokens, slots, D_EXPERT)
    w,  # (num_experts, D_MODEL, D_EXPERT)
    experts,  # (tokens, slots), -1 for an empty slot
    y,  # (tokens, D_MODEL)
    slots,
    num_experts,
    D_MODEL: tl.constexpr,
    D_EXPERT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # 1. Which columns of which token are mine?
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < D_MODEL
    # 2. Slot by slot: stream that expert's weights. An empty slot reads nothing.
    total = tl.zeros((BLOCK_N,), tl.float32)
    for slot in range(slots):
        expert = tl.load(experts + token * slots + slot).to(tl.int64)
        expert = tl.where(expert < num_experts, expert, -1)  # as in `decode_up`
        matrix = w + expert * (D_MODEL * D_EXPERT) + columns.to(tl.int64)[:, None] * D_EXPERT
        for k in tl.range(0, D_EXPERT, BLOCK_K):
            inner = k + tl.arange(0, BLOCK_K)
            exists = (inner < D_EXPERT) & (expert >= 0)
            values = tl.load(a + (token * slots + slot) * D_EXPERT + inner, mask=exists, other=0.0)
            tile = tl.load(matrix + inner, mask=inside[:, None] & exists[None, :], other=0.0)
            total += tl.sum(tile.to(tl.float32) * values.to(tl.float32), axis=1)
    # 3. Round once, on the way out.
    tl.store(y + token * D_MODEL + columns, total.to(y.dtype.element_ty), mask=inside)


def decode_down(a, w, experts):
    """(tokens, slots, d_expert) -> (tokens, d_model): each slot through its expert's second matrix, summed.

    ``w`` is (num_experts, d_model, d_expert); ``experts`` (tokens, slots) with -1 for an empty slot.
    """
    check_tensors(a=a, w=w)
    check_places(a=a, experts=experts)
    check_dims(3, a=a, w=w)
    if a.dtype != w.dtype or a.shape[2] != w.shape[2] or a.shape[:2] != experts.shape:
        raise ValueError(
            f"a is {tuple(a.shape)} {a.dtype}, w {tuple(w.shape)} {w.dtype}, experts {tuple(experts.shape)}: "
            "they do not fit"
        )
    tokens, slots, d_expert = a.shape
    y = a.new_empty(tokens, w.shape[1])
    if y.numel():
        _decode_down_kernel[(tokens, triton.cdiv(w.shape[1], BLOCK_N))](
            a.contiguous(),
            w.contiguous(),
            experts.contiguous(),
            y,
            slots=slots,
            num_experts=w.shape[0],
            D_MODEL=w.shape[1],
            D_EXPERT=d_expert,
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            num_warps=4,
        )
    return y


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=3, d_model=40, d_expert=24, num_experts=4, top_k=2),
    "one_token": dict(tokens=1, d_model=24, d_expert=16, num_experts=4, top_k=3),
    "odd": dict(tokens=2, d_model=97, d_expert=47, num_experts=5, top_k=5),
    "one_expert": dict(tokens=4, d_model=32, d_expert=40, num_experts=1, top_k=1),
    "qwen3": dict(tokens=4, d_model=2048, d_expert=768, num_experts=128, top_k=8),
    "mixtral": dict(tokens=2, d_model=4096, d_expert=14336, num_experts=8, top_k=2),
}


def make_inputs(tokens, d_model, d_expert, num_experts, top_k, *, dtype, device, seed=0):
    """Activated values of order 1, weights, a routing with an empty expert and empty slots."""
    experts, _ = make_routing(tokens, num_experts, top_k, seed=seed)
    a = normal(tokens, top_k, d_expert, seed=seed, dtype=dtype, device=device)
    w = normal(num_experts, d_model, d_expert, seed=seed + 1, dtype=dtype, device=device, scale=d_expert**-0.5)
    return a, w, experts.to(device)


def cost(tokens, d_model, d_expert, num_experts, top_k, *, itemsize):
    """(FLOPs, bytes) that any implementation must spend, if no two tokens share an expert."""
    rows = tokens * top_k
    numbers = rows * d_expert + min(rows, num_experts) * d_model * d_expert + tokens * d_model
    return 2 * rows * d_expert * d_model, itemsize * numbers
