"""Extreme logits by name, the top-k router once more in Python's own floats, and how a compiled graph sees."""

import math
import os
import sys

import torch

INF, NAN = math.inf, math.nan
WIDEST = 3e38  # float32 ends at 3.4e38
THOROUGH = os.environ.get("MOE_LAB_THOROUGH") == "1"
SCORES = ("softmax", "sigmoid", "softmax_after_top_k")

ROWS = {
    "equal": [0.5] * 8,
    "zeros of either sign": [0.0, -0.0, -0.0, 0.0, 0.0, -0.0, 0.0, -0.0],
    "pairs": [1.0, 3.0, 1.0, 3.0, 2.0, 2.0, 3.0, 1.0],
    "certain": [0.0, 0.0, 1e4, 0.0, 0.0, 0.0, 0.0, 0.0],
    "certain of the last": [-1e38] * 7 + [1e38],
    "exp overflows": [88.0, 88.7, 89.0, 100.0, 1e4, -88.0, -89.0, 0.0],
    "sigmoids are 1": [17.0, 18.0, 30.0, 50.0, 40.0, 1e38, 60.0, 20.0],
    "the guard of 1e-20": [-45.0, -46.0, -47.0, -50.0, -45.5, -60.0, -46.5, -52.0],
    "sigmoids are 0": [-100.0, -101.0, -90.0, -1e4, -1e38, -95.0, -200.0, -89.0],
    "denormal": [1e-45, 2e-40, -3e-40, 0.0, -1e-45, 1e-39, 4e-45, -0.0],
    "widest": [WIDEST, -WIDEST, 0.0, WIDEST, -WIDEST, 1.0, -1.0, 2e38],
    "all lowest": [-WIDEST] * 8,
}


def make_logits(dtype=torch.float32):
    """A token for each name of `ROWS`; what the dtype cannot hold becomes the most that it can."""
    most = torch.finfo(dtype).max
    return torch.tensor(list(ROWS.values()), dtype=torch.float64).clamp(-most, most).float().to(dtype)


def by_hand(row, top_k, score="softmax", bias=None, renormalise=False, scale=1.0):
    """(experts, weights) of one token: best first, the lower expert among equals."""
    scores = scores_by_hand(row, score)
    ranking = row if bias is None else [value + b for value, b in zip(scores, bias, strict=True)]
    experts = sorted(range(len(row)), key=lambda expert: (-ranking[expert], expert))[:top_k]
    chosen = [scores[expert] for expert in experts]
    if score == "softmax_after_top_k":
        chosen = scores_by_hand(chosen, "softmax")
    if renormalise:
        total = math.fsum(chosen) + 1e-20
        chosen = [value / total for value in chosen]
    return experts, [scale * value for value in chosen]


def scores_by_hand(row, score):
    if score == "softmax":
        raised = [math.exp(value - max(row)) for value in row]
        return [value / math.fsum(raised) for value in raised]
    if score == "sigmoid":
        return [1 / (1 + math.exp(-value)) if value > -700 else 0.0 for value in row]
    return row


def without_values(monkeypatch):
    """Let the library look at no values, as in a graph of ``torch.compile``, where none are there yet."""
    for name, module in list(sys.modules.items()):
        if name.startswith("moe_lab") and "may_read" in vars(module):
            monkeypatch.setattr(module, "may_read", lambda tensor: False)
