"""How many bits a number takes."""

from fractions import Fraction

import torch

BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int8": 8,
    "mxfp4": Fraction(17, 4),
    "int4": 4,
}
"""Bits a number takes. mxfp4: 4, and one scale of 8 bits for each block of 32 (OCP Microscaling, section 5.2)."""


def bits_of(name: str, dtype: str | torch.dtype) -> int | Fraction:
    """Bits of one number; refuses a dtype that it does not know, by the argument's name."""
    key = str(dtype).removeprefix("torch.")
    if key not in BITS:
        raise ValueError(f"{name} must be one of {', '.join(BITS)}; got {dtype!r}")
    return BITS[key]
