"""Suite "order": the grouped product with its tiles in another order, where PyTorch's "4.4x" is said to come from."""

from collections.abc import Callable

import torch

import moe_lab.kernels  # noqa: F401  (before triton: without a GPU it switches the interpreter on)
from moe_lab.bench.inputs import draw_routing
from moe_lab.bench.record import Case
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.bench.shapes import MODELS, require_gpu
from moe_lab.kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
from moe_lab.kernels.sort_tokens import sort_tokens
from moe_lab.profiling import time_interleaved
from moe_lab.roofline import LayerShape

GROUPS = {"row-major": 1, "grouped by 4": 4, "grouped by 8": 8, "grouped by 16": 16, "grouped by 32": 32}
COLUMN_MAJOR = 2**20  # more than there are rows of tiles: one group of all
PRODUCTS = [("Mixtral 8x7B", 8192), ("Mixtral 8x7B", 512), ("Qwen3-30B-A3B", 32768), ("DeepSeek-V3", 8192)]


def order(quick: bool = False) -> list[Case]:
    """A case for the first product of each layer."""
    if quick:
        return [Case("tiny", lambda seconds: compare(LayerShape(40, 24, 4, 2), 40, torch.float32, 16, seconds))]
    require_gpu("order")
    return [
        Case(
            f"{name} {tokens}",
            lambda seconds, name=name, tokens=tokens: compare(MODELS[name], tokens, torch.bfloat16, 128, seconds),
        )
        for name, tokens in PRODUCTS
    ]


def compare(shape: LayerShape, tokens: int, dtype: torch.dtype, block_m: int, seconds: float) -> list[Measured]:
    """One product, x @ w_gate_up of each row's expert, in every order."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(0)
    routing = draw_routing(tokens, shape.num_experts, shape.top_k, device=device)
    table = sort_tokens(routing.experts, shape.num_experts, block_m)
    options = {"generator": draw, "dtype": dtype, "device": device}
    x = torch.randn(table.row_assignment.numel(), shape.d_model, **options)
    w = torch.randn(shape.num_experts, 2 * shape.d_expert, shape.d_model, **options) * shape.d_model**-0.5
    groups = GROUPS | {"column-major": COLUMN_MAJOR}

    def product(group_m: int) -> Callable[[], torch.Tensor]:
        return lambda: grouped_gemm(x, w, table.tile_expert, table.num_tiles, block_m, group_m=group_m)

    functions = {name: product(group_m) for name, group_m in groups.items()}
    rows = int(table.num_tiles) * block_m
    wanted = grouped_gemm_reference(x, w, table.tile_expert, table.num_tiles, block_m)[:rows].float()
    errors = {name: float((call()[:rows].float() - wanted).norm() / wanted.norm()) for name, call in functions.items()}
    timings = time_interleaved(functions, repeats=51, seconds=seconds / 2)
    assignments = tokens * shape.top_k
    size = x.element_size()
    return [
        Measured(
            name,
            "forward",
            {"tokens": tokens, "d_in": shape.d_model, "d_out": 2 * shape.d_expert, "num_experts": shape.num_experts}
            | {"top_k": shape.top_k},
            str(dtype).removeprefix("torch."),
            error=errors[name],
            tolerance=2e-2 if dtype == torch.bfloat16 else 1e-5,
            flops=2 * assignments * shape.d_model * 2 * shape.d_expert,
            bytes=size * (assignments * (shape.d_model + 2 * shape.d_expert) + w.numel()),
            **as_percentiles(timing),
        )
        for name, timing in timings.items()
    ]
