"""Matrix products into memory that is there, by the library that is the fastest here.

PyTorch hands float32 to MKL, and MKL uses AVX-512 on Intel's processors alone. oneDNN, which PyTorch has beside it for
its compiler, uses it on AMD's, too: twice as fast (LOG.md). It makes code for each new shape, in a third of a
millisecond. So small products stay where they are.
"""

import functools
import platform
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from moe_lab.operators.processor import say_cpuinfo

EVEN_ROWS = 8
"""oneDNN keeps code for about a thousand shapes."""
LEAST_NUMBERS = 2**24
"""Multiply-adds from which oneDNN is faster even where it has to make code first."""


def multiply_into(
    out: Float[Tensor, "rows columns"],
    left: Float[Tensor, "rows inner"],
    right: Float[Tensor, "inner columns"],
    add: bool = False,
) -> Float[Tensor, "rows columns"]:
    """Write left @ right to ``out``, or add it to what is there; where dtypes differ, rounded once.

    Example:
        >>> multiply_into(torch.ones(1, 1), torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0], [7.0]]), add=True)
        tensor([[32.]])
    """
    if _is_for_onednn(left, right):
        product = multiply_by_onednn(left, right)
    elif out.dtype != left.dtype:
        product = left @ right
    elif add:
        return out.addmm_(left, right)
    else:
        return torch.mm(left, right, out=out)
    return out.add_(product) if add else out.copy_(product)


def multiply_by_onednn(
    left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]
) -> Float[Tensor, "rows columns"]:
    """left @ right by oneDNN, in new memory. Where PyTorch was built without it, an AttributeError.

    Example:
        >>> multiply_by_onednn(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0], [7.0]])) if has_onednn() else "none"
        tensor([[31.]])
    """
    weight = right.T
    if not (weight.is_contiguous() or right.is_contiguous()):
        weight = weight.contiguous()  # a part of a matrix would take it a thousand times as long
    return torch.ops.mkldnn._linear_pointwise(with_rows_behind(left), weight, None, "none", [], "")[: len(left)]


def with_rows_behind(left: Float[Tensor, "rows inner"]) -> Float[Tensor, "more_rows inner"]:
    """The matrix, and what lies behind it in its memory, up to a multiple of `EVEN_ROWS` rows; itself, if none does.

    Experts get other numbers of rows in every step. Rounded up, there are few shapes to make code for; the products of
    whatever lies there are thrown away.

    Example:
        >>> memory = torch.arange(20.0).view(10, 2)
        >>> with_rows_behind(memory[:5]).shape, with_rows_behind(memory[5:]).shape
        (torch.Size([8, 2]), torch.Size([5, 2]))
    """
    rows, inner = left.shape
    more = -(-rows // EVEN_ROWS) * EVEN_ROWS
    if more == rows or left.stride(1) != 1 or left.stride(0) < inner:
        return left
    end = left.storage_offset() + (more - 1) * left.stride(0) + inner
    if end * left.element_size() > left.untyped_storage().nbytes():
        return left
    return left.as_strided((more, inner), left.stride())


def has_onednn() -> bool:
    """Whether PyTorch was built with oneDNN.

    Example:
        >>> has_onednn() == hasattr(torch.ops.mkldnn, "_linear_pointwise")
        True
    """
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_for_onednn(left: Tensor, right: Tensor) -> bool:
    if left.dtype != torch.float32 or left.device.type != "cpu":
        return False
    return left.shape[0] * left.shape[1] * right.shape[1] >= LEAST_NUMBERS and onednn_is_faster()


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 and is not one for which MKL uses it.

    Example:
        >>> onednn_is_faster() in (True, False)
        True
    """
    return has_onednn() and torch.backends.cpu.get_cpu_capability() == "AVX512" and _maker() == "AuthenticAMD"


def _maker(*file: Path) -> str:
    """The word by which a processor names its maker: Linux has it in a file, Windows at the end of a description."""
    return say_cpuinfo("vendor_id", *file) or platform.processor().rpartition(", ")[2]
