"""Top-k gate: from router logits to the chosen experts of each token and their weights, in one launch.

    ranking[t, e] = logits[t, e]          or, with a bias:  score(logits)[t, e] + bias[e]
    experts[t]    = the top_k highest of ranking[t], best first, equal values in the order of the experts
    weights[t, j] = scale * score(logits)[t, experts[t, j]]      renormalised: divided by their sum over j, plus 1e-20

    one program = BLOCK_TOKENS rows of logits, whole, in registers; each round takes the best that is left:

                 e0   e1   e2   e3   e4   e5   pad  pad          round 0    round 1        experts
        token 0 | .3 | 2. | .1 | 2. | -1 | .5 | -- | -- |          e1         e3           [1, 3]
        token 1 | .9 | -2 | .4 | .0 | .2 | .1 | -- | -- |          e0         e2           [0, 2]

A round finds the greatest int32 key, not the greatest float: a key below that of every float stands for "taken" and for
padding, so an expert of -inf can still be chosen, and no index leaves 0..num_experts-1 whatever the logits are.

Traffic: logits are read once, tokens * num_experts * itemsize bytes, and 8 * tokens * top_k bytes written; no matrix
product. In plain PyTorch softmax, sort and gather each write and read matrices of (tokens, num_experts). The rounds
compare tokens * num_experts * top_k keys, all in registers: memory limits it for small top_k, comparing for large.
Source: top-k of a softmax as in Shazeer et al. 2017 (arXiv:1701.06538), section 2.1; a bias for the selection alone as
in DeepSeek-V3 (arXiv:2412.19437), section 2.1.2.
"""

import torch
import triton
import triton.language as tl

from ._launch import check_places, check_tensors, normal

SCORES = ("softmax", "sigmoid", "softmax_after_top_k")
MOST_EXPERTS = 1024  # a row of logits has to fit into the registers of one program
LARGEST = torch.finfo(torch.float32).max


def topk_gate_reference(logits, top_k, *, score="softmax", bias=None, renormalise=False, scale=1.0):
    """The same result by a stable sort, in float64 if the logits are; differentiable in the logits."""
    scores = score_reference(logits, score)
    ranking = widen(logits).detach() if bias is None else scores.detach() + bias.detach()
    experts = ranking.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    return weigh_reference(scores, experts, score, renormalise, scale), experts.int()


def widen(logits):
    """Half-precision logits are routed in float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def score_reference(logits, score):
    """Softmax over the experts, sigmoid of each logit, or the logits themselves."""
    wide = widen(logits)
    return {"softmax": lambda: wide.softmax(dim=1), "sigmoid": wide.sigmoid}.get(score, lambda: wide)()


def weigh_reference(scores, experts, score, renormalise, scale):
    """Weights of experts that are chosen already."""
    chosen = scores.gather(1, experts.long())
    if score == "softmax_after_top_k":
        chosen = chosen.softmax(dim=1)
    if renormalise:
        chosen = chosen / (chosen.sum(dim=1, keepdim=True) + 1e-20)
    return chosen * scale


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), below -88.7 as at -88.7: there exp(-x) passes what float32 can hold. NaN stays NaN."""
    return 1.0 / (1.0 + tl.exp(-tl.where(x < -88.7, -88.7, x)))


@triton.jit
def order_key(value):
    """An int32 that orders as the float32 does, -0.0 equal to 0.0, NaN above all; never the least int32."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(value == value, key, 0x7FFFFFFF)


@triton.jit
def _topk_gate_kernel(
    logits,  # (tokens, NUM_EXPERTS)
    bias,  # (NUM_EXPERTS,), or None
    weights,  # float32 (tokens, TOP_K)
    experts,  # int32 (tokens, TOP_K)
    tokens,
    scale,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,  # NUM_EXPERTS up to a power of two
    SLOTS: tl.constexpr,  # TOP_K up to a power of two
):
    # 1. Which tokens are mine? Past the last token its row is read again, and nothing is written.
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.minimum(token, tokens - 1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    real = (column < NUM_EXPERTS)[None, :]
    x = tl.load(logits + row[:, None] * NUM_EXPERTS + column, mask=real, other=float("-inf")).to(tl.float32)
    # 2. What a softmax over all experts divides by.
    if SCORE == "softmax":
        highest = tl.max(x, axis=1)[:, None]
        total = tl.sum(tl.exp(x - highest), axis=1)[:, None]
    # 3. Rank: by logits, which rounding cannot make equal, or by score + bias.
    ranking = x
    if bias is not None:
        if SCORE == "softmax":
            ranking = tl.exp(x - highest) / total
        if SCORE == "sigmoid":
            ranking = sigmoid(x)
        ranking += tl.load(bias + column, mask=column < NUM_EXPERTS, other=0.0).to(tl.float32)
    # 4. top_k rounds: the greatest key, the lowest index among equals; what is taken falls below every float.
    taken = -0x80000000
    keys = tl.where(real, order_key(ranking), taken)
    slot = tl.arange(0, SLOTS)[None, :]
    chosen_experts = tl.zeros((BLOCK_TOKENS, SLOTS), tl.int32)
    for j in tl.range(0, TOP_K):
        best = tl.argmax(keys, axis=1)[:, None]
        keys = tl.where(column == best, taken, keys)
        chosen_experts = tl.where(slot == j, best, chosen_experts)
    # 5. Weigh the chosen ones, from their logits alone. What is no slot has -inf, and so the weight 0.
    used = slot < TOP_K
    chosen = tl.load(logits + row[:, None] * NUM_EXPERTS + chosen_experts, mask=used, other=float("-inf"))
    chosen = chosen.to(tl.float32)
    if SCORE == "softmax":
        chosen = tl.exp(chosen - highest) / total
    elif SCORE == "sigmoid":
        chosen = sigmoid(chosen)
    else:
        chosen = tl.exp(chosen - tl.max(chosen, axis=1)[:, None])
        chosen = chosen / tl.sum(chosen, axis=1)[:, None]
    if RENORMALISE:
        chosen = chosen / (tl.sum(chosen, axis=1)[:, None] + 1e-20)
    # 6. Write.
    place = token.to(tl.int64)[:, None] * TOP_K + slot
    mine = used & (token < tokens)[:, None]
    tl.store(weights + place, chosen * scale, mask=mine)
    tl.store(experts + place, chosen_experts, mask=mine)


def topk_gate(logits, top_k, *, score="softmax", bias=None, renormalise=False, scale=1.0):
    """Choose the ``top_k`` best experts of each token and weigh them: (tokens, num_experts) -> two of (tokens, top_k).

    Returns ``weights`` (float32) and ``experts`` (int32, best first). Options mean what they mean to `moe_lab.route`.
    Nothing waits for the GPU, so values are not looked at. What `route` refuses does what it does in PyTorch: -inf is
    chosen last and weighs 0, or by sigmoid 3e-39 (NaN, where nothing else is chosen and a softmax divides by 0); a NaN
    ranks first and comes out as a NaN weight, and so does the +inf of a softmax. Experts are distinct and in range,
    always.
    """
    check_places(logits=logits)
    check_options(logits, score, renormalise, scale)
    check_tensors(**{"logits": logits} | ({} if bias is None else {"bias": bias}))
    tokens, num_experts = logits.shape
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be a whole number in 1..{num_experts}, got {top_k!r}")
    if bias is not None and bias.shape != (num_experts,):
        raise ValueError(f"bias must be (num_experts,) = ({num_experts},), got {tuple(bias.shape)}")
    weights = logits.new_empty(tokens, top_k, dtype=torch.float32)
    experts = logits.new_empty(tokens, top_k, dtype=torch.int32)
    block_tokens, columns = block_of(num_experts)
    _topk_gate_kernel[(triton.cdiv(tokens, block_tokens),)](
        logits.contiguous(),
        None if bias is None else bias.contiguous(),
        weights,
        experts,
        tokens,
        float(scale),
        NUM_EXPERTS=num_experts,
        TOP_K=top_k,
        SCORE=score,
        RENORMALISE=renormalise,
        BLOCK_TOKENS=block_tokens,
        COLUMNS=columns,
        SLOTS=triton.next_power_of_2(top_k),
        num_warps=4,
    )
    return weights, experts


def check_options(logits, score, renormalise, scale):
    """Refuse what neither the gate nor its backward can compute."""
    if logits.dim() != 2 or not 1 <= logits.shape[1] <= MOST_EXPERTS:
        raise ValueError(
            f"logits must be (tokens, num_experts) with num_experts in 1..{MOST_EXPERTS}, got {tuple(logits.shape)}"
        )
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}; got {score!r}")
    if not isinstance(renormalise, bool):
        raise TypeError(f"renormalise must be True or False, got {renormalise!r}")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= LARGEST:
        raise ValueError(f"scale must be a finite number, got {scale!r}; weights are float32")


def block_of(num_experts):
    """(tokens, columns) of one program: 2048 numbers, 16 a thread, but no more than 64 tokens."""
    columns = triton.next_power_of_2(num_experts)
    return min(64, 2048 // columns), columns


# What tests, benchmarks and lessons share.
SHAPES = {
    "tiny": dict(tokens=9, num_experts=8, top_k=2),
    "one_token": dict(tokens=1, num_experts=8, top_k=2),
    "odd": dict(tokens=70, num_experts=97, top_k=5),
    "one_expert": dict(tokens=5, num_experts=1, top_k=1),
    "qwen3": dict(tokens=32768, num_experts=128, top_k=8),
    "deepseek": dict(tokens=65536, num_experts=256, top_k=8),
}


VARIANTS = {
    "deepseek": dict(num_experts=256, score="sigmoid", bias=torch.empty(256, device="meta"), renormalise=True),
    "gpt_oss": dict(score="softmax_after_top_k"),
    "widest": dict(num_experts=MOST_EXPERTS, bias=torch.empty(MOST_EXPERTS, device="meta")),
}
"""Other ways to launch it, which are compiled as well: options of `topk_gate`, or of `make_inputs`."""


def make_inputs(tokens, num_experts, top_k, *, dtype, device, seed=0):
    """Logits of order 1, and how many experts each token asks for."""
    return normal(tokens, num_experts, seed=seed, dtype=dtype, device=device), top_k


def cost(tokens, num_experts, top_k, *, itemsize):
    """(FLOPs of matrix products, bytes) that any implementation must spend."""
    return 0, tokens * (num_experts * itemsize + top_k * 8)
