"""FLOPs and bytes of an operator, from the shapes and dtypes that PyTorch's profiler writes down of its inputs."""

import math
from collections.abc import Sequence

import torch

from moe_lab.accounting.counter import added_product_flops, grouped_mm_flops, product_flops

ITEM_BYTES = {
    "float": 4,
    "double": 8,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "long int": 8,
    "long": 8,
    "int": 4,
    "bool": 1,
    "unsigned char": 1,
}
"""Bytes of one number, by the profiler's names of dtypes."""
PRODUCTS = {"aten::mm": 2, "aten::bmm": 2, "aten::mv": 2, "aten::dot": 2}
ADDED_PRODUCTS = {f"aten::{name}{end}": 3 for name in ("addmm", "baddbmm", "addmv") for end in ("", "_")}
ELEMENTWISE = {f"aten::{name}": 1 for name in ("silu", "gelu", "relu", "sigmoid", "neg", "exp", "abs")}
ELEMENTWISE |= {f"aten::{name}": 2 for name in ("mul", "add", "sub", "div", "silu_backward", "gelu_backward")}
IN_PLACE = {f"aten::{name}_": 2 for name in ("mul", "add", "sub", "div")} | {"aten::silu_": 1}

Shape = tuple[int, ...]


def count_operator(name: str, shapes: Sequence[Sequence[int]], dtypes: Sequence[str]) -> tuple[int | None, int | None]:
    """(FLOPs, bytes) of one call; None where they do not follow from its inputs.

    FLOPs are those of matrix products, as `flop_counter` counts them, by its formulas; all else has None, and not 0.
    The profiler writes down no values: a grouped product counts all rows, those beyond its last offset too.

    Bytes are compulsory: every input read once, the result written once, what is added to or copied into read or
    written as well. A cache may hold some of them, so a rate in bytes/s can be above that of the memory. Known for
    products, for steps element by element, copies, fills and ``index_select``.

    Example:
        >>> count_operator("aten::mm", [[3, 4], [4, 5]], ["float", "float"])
        (120, 188)
        >>> count_operator("aten::topk", [[3, 4], []], ["float", "Scalar"])
        (None, None)
    """
    # a number among the arguments has the dtype "Scalar", one that is left out ""
    tensors = [
        (tuple(shape), ITEM_BYTES[dtype]) for shape, dtype in zip(shapes, dtypes, strict=False) if dtype in ITEM_BYTES
    ]
    sizes = [shape for shape, _ in tensors]
    if name in PRODUCTS | ADDED_PRODUCTS and len(tensors) >= (PRODUCTS | ADDED_PRODUCTS)[name]:
        return _product(sizes[: (PRODUCTS | ADDED_PRODUCTS)[name]], tensors[0][1])
    if name == "mkldnn::_linear_pointwise" and len(tensors) >= 2:  # left @ right.T
        return _product([sizes[0], sizes[1][::-1]], tensors[0][1])
    if name == "aten::_grouped_mm" and len(tensors) >= 2:
        return grouped_mm_flops(*(torch.empty(size, device="meta") for size in sizes[:2])), None
    return None, _moved(name, tensors)


def _product(sizes: list[Shape], item_bytes: int) -> tuple[int, int]:
    """Of left @ right, or of addend + left @ right."""
    *_, left, right = sizes
    meta = [torch.empty(size, device="meta") for size in sizes]
    flops = product_flops(*meta) if len(sizes) == 2 else added_product_flops(*meta)
    result = (*left[:-1], *(right[-1:] if len(right) > 1 else ()))
    return flops, item_bytes * sum(math.prod(size) for size in [*sizes, result])


def _moved(name: str, tensors: list[tuple[Shape, int]]) -> int | None:
    """Bytes of operators without products."""
    moved = [math.prod(size) * item_bytes for size, item_bytes in tensors]
    if name in ELEMENTWISE and len(tensors) >= ELEMENTWISE[name]:
        inputs = tensors[: ELEMENTWISE[name]]
        result = math.prod(torch.broadcast_shapes(*(size for size, _ in inputs)))
        return sum(moved[: len(inputs)]) + result * max(item_bytes for _, item_bytes in inputs)
    if name in IN_PLACE and tensors:
        return moved[0] + sum(moved[: IN_PLACE[name]])
    if name == "aten::copy_" and len(tensors) == 2:
        (size, item_bytes), (source, source_bytes) = tensors
        return math.prod(size) * item_bytes + math.prod(source) * source_bytes
    if name in ("aten::fill_", "aten::zero_") and tensors:
        return moved[0]
    if name == "aten::index_select" and len(tensors) >= 2 and len(tensors[0][0]) == 2:
        row = tensors[0][0][1] * tensors[0][1]  # rows: index_select along the first dimension of a matrix
        return 2 * math.prod(tensors[1][0]) * row + moved[1]
    return None
