"""A patient of the kernels: an address that does not fit into 32 bits."""

import torch
from torch import Tensor

from moe_lab.clinic.patient import Function, Law, Patient, draw


def row_starts(rows, row_width):
    """Where rows begin in memory, in elements: int32 row numbers, as a kernel holds them -> int64."""
    return (rows * row_width).long()


def _widened_first(rows, row_width):
    return rows.long() * row_width


def _in_python(rows, row_width):
    return torch.tensor([row * row_width for row in rows.tolist()], dtype=torch.int64)


def _starts(rows: list[int], row_width: int) -> Law:
    def law(starts: Function) -> str | None:
        yours = starts(torch.tensor(rows, dtype=torch.int32), row_width)
        if yours.dtype != torch.int64:
            return f"yours {yours.dtype}, spec torch.int64"
        for row, found in zip(rows, yours.tolist(), strict=True):
            if found != row * row_width:
                return f"row {row:,} of width {row_width:,}: yours {found:,}, spec {row * row_width:,}"
        return None

    return law


def _drawn(starts: Function) -> str | None:
    rows = (draw(30, seed=2).abs() * 300_000).long().tolist()
    return _starts(rows, 7168)(starts) or _starts(rows, 4097)(starts)


def last_start(starts: Function, tokens: int, top_k: int = 8, row_width: int = 7168) -> int:
    """Where the last of tokens * top_k rows begins.

    Example:
        >>> last_start(_widened_first, 56_000)
        3211256832
    """
    return int(starts(torch.tensor([tokens * top_k - 1], dtype=torch.int32), row_width))


def _tell_starts(starts: Function) -> str:
    said = [f"{tokens:,} tokens: {last_start(starts, tokens):,}" for tokens in (20_000, 37_000, 38_000, 56_000)]
    return f"d_model 7168, top-8, a row an assignment. The last row begins at element, of {'; '.join(said)}."


def _clamped(rows: Tensor, row_width: int) -> Tensor:
    return _widened_first(rows, row_width).clamp(max=2**31 - 1)


NARROW = Patient(
    "Fine up to 37,449 tokens",
    ("sgl-project/sglang#4727", "linkedin/Liger-Kernel#1296", "databricks/megablocks#185"),
    _tell_starts,
    row_starts,
    {"widened first": _widened_first, "in Python's whole numbers": _in_python},
    {
        "in float32": lambda rows, row_width: (rows.float() * row_width).long(),
        "unsigned, up to 2^32": lambda rows, row_width: (rows * row_width).long() & 0xFFFFFFFF,
        "clamped to the largest": _clamped,
        "the absolute value": lambda rows, row_width: (rows * row_width).long().abs(),
        "the row's number": lambda rows, row_width: rows.long(),
        "the row's end": lambda rows, row_width: _widened_first(rows, row_width) + row_width,
    },
    {
        "small": _starts([0, 1, 2, 9], 16),
        "odd numbers": _starts([4097, 5003], 4099),
        "just below 2^31": _starts([299_592], 7168),
        "just above 2^31": _starts([299_593, 299_594], 7168),
        "56,000 tokens": _starts([447_999], 7168),
        "above 2^32": _starts([700_000, 2_000_000], 7168),
        "drawn by chance": _drawn,
    },
)
