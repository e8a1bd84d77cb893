"""Suite "align": sorting assignments by expert, against the serial kernel that AMD's "10x" was measured against."""

from collections.abc import Callable

import torch
from torch import Tensor

import moe_lab.kernels  # noqa: F401  (before triton: without a GPU it switches the interpreter on)
from moe_lab.bench.graphs import CALLS, capture
from moe_lab.bench.inputs import draw_routing
from moe_lab.bench.record import Case
from moe_lab.bench.rows import MODES, Measured, as_percentiles
from moe_lab.bench.shapes import require_gpu
from moe_lab.kernels.align_scan import align_scan
from moe_lab.kernels.align_serial import align_serial
from moe_lab.kernels.sort_tokens import sort_tokens
from moe_lab.profiling import time_interleaved

BLOCK = 64
SIZES = [(8192, 8, 2), (8192, 64, 8), (8192, 256, 8), (1024, 256, 8), (32768, 128, 8)]


def align(quick: bool = False) -> list[Case]:
    """A case for each (tokens, num_experts, top_k) and mode."""
    if not quick:
        require_gpu("align")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    modes, sizes = (("eager",), [(12, 4, 2), (9, 8, 3)]) if quick else (reversed(MODES), SIZES)
    return [
        Case(f"{size} {mode}", lambda seconds, size=size, mode=mode: compare(*size, mode, device, seconds))
        for mode in modes
        for size in sizes
    ]


def compare(tokens: int, num_experts: int, top_k: int, mode: str, device: str, seconds: float) -> list[Measured]:
    """Ours, the one by atomic additions, the serial one, and PyTorch's sort, on the same experts."""
    experts = draw_routing(tokens, num_experts, top_k, device=device).experts
    functions: dict[str, Callable[[], object]] = {
        "align_serial": lambda: align_serial(experts, num_experts, BLOCK),
        "sort_tokens": lambda: sort_tokens(experts, num_experts, BLOCK),
        "align_scan": lambda: align_scan(experts, num_experts, BLOCK),
        "torch.argsort + histc": lambda: torch_sort(experts, num_experts),
    }
    errors = {
        "align_serial": rows_out_of_place(functions["align_serial"]()[0], experts),
        "sort_tokens": rows_out_of_place(functions["sort_tokens"]().row_assignment, experts),
        "align_scan": rows_out_of_place(functions["align_scan"]()[0], experts),
        "torch.argsort + histc": rows_out_of_place(functions["torch.argsort + histc"]()[0], experts),
    }
    calls = {name: capture(function) for name, function in functions.items()} if mode == "graph" else functions
    timings = time_interleaved(calls, repeats=101, seconds=seconds / 2)
    sizes = {"tokens": tokens, "num_experts": num_experts, "top_k": top_k}
    return [
        Measured(
            name,
            "forward",
            sizes,
            "int64",
            error=float(errors[name]),
            tolerance=0.0,
            bytes=12 * experts.numel(),  # each assignment is read, and its place written
            mode=mode,
            version=torch.__version__ if name.startswith("torch") else None,
            **as_percentiles(timing, CALLS if mode == "graph" else 1),
        )
        for name, timing in timings.items()
    ]


def torch_sort(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """PyTorch's own: a stable sort, and the loads. Its rows are not padded to tiles."""
    flat = experts.flatten()
    return flat.argsort(stable=True), torch.histc(flat.float(), bins=num_experts, min=0, max=num_experts - 1)


def rows_out_of_place(order: Tensor, experts: Tensor) -> int:
    """How many rows break the rule: every assignment once, in the order of experts; padding lies outside 0..rows-1."""
    flat = experts.flatten()
    real = order[(order >= 0) & (order < flat.numel())].long()
    if len(real) != flat.numel() or not torch.equal(real.sort().values, torch.arange(len(real), device=real.device)):
        return flat.numel()
    sorted_experts = flat[real]
    return int((sorted_experts[1:] < sorted_experts[:-1]).sum())
