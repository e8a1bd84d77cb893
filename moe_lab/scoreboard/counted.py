"""What can be said without a record and without a GPU: counted exactly, or simulated, and labelled so."""

import functools
from dataclasses import replace
from pathlib import Path

from moe_lab.cache import GEMMS, Gemm, even_load, simulate
from moe_lab.dispatch import one_hot_flops, table_flops
from moe_lab.roofline import DEVICES
from moe_lab.routers.capacity import expert_capacity
from moe_lab.scoreboard.facts import Finding
from moe_lab.scoreboard.printed import AMD_EXPERTS, AMD_TIMES

TOP_K = 8  # the article says so of one of its workloads


def serial_steps(assignments: int, num_experts: int) -> int:
    """The longest chain of steps in `kernels/align_serial.py`: 2 ceil(assignments / E) + 2 E, on any GPU.

    Example:
        >>> serial_steps(32768, 8), serial_steps(32768, 256)
        (8208, 768)
    """
    return 2 * -(-assignments // num_experts) + 2 * num_experts


def amd_chain(data: Path) -> Finding:
    """The serial kernel's chain in the article's rows, and what few experts would make of the shortest."""
    tokens = sorted({tokens for _, tokens in AMD_TIMES})
    steps = {f"{many:,} tokens": serial_steps(TOP_K * many, AMD_EXPERTS) for many in tokens}
    steps[f"{tokens[0]:,} tokens, 8 experts"] = serial_steps(TOP_K * tokens[0], 8)
    return Finding("counted", steps, "steps", 0, "the longest chain of the serial kernel")


def written_tiles(data: Path) -> Finding | None:
    """The share of the output tiles that the published column-major map writes; None without Triton."""
    shares = {}
    for tokens in (4, 16, 128, 512):
        block_m, block_n = (64, 64) if 2 * tokens > 8 else (16, 32)
        grid_m = -(-(2 * tokens + 8 * (block_m - 1)) // block_m)
        blocks = {"block_m": block_m, "block_n": block_n, "block_k": 3584}
        for product, sizes in (("first", (4096, 14336)), ("second", (7168, 4096))):
            gemm = Gemm(even_load(2 * tokens, 8), *sizes, **blocks)
            try:
                found = simulate("broken_column_major", gemm, "H100 SXM", upper_tiles_m=grid_m)
            except ImportError:  # the maps live beside a kernel
                return None
            shares[f"{product} product, {tokens} tokens"] = found.tiles_written / found.tiles
    return Finding("counted", shares, "%", 1, "of its tiles the published map writes")


def order_floors(data: Path) -> Finding | None:
    """Highest over lowest floor of three orders, by an H200's data sheet and a simulated cache; None without Triton."""
    try:
        ratios = {name: _highest_over_lowest(name) for name in ("Mixtral up, 16384 rows", "Mixtral up, 32 tokens")}
    except ImportError:
        return None
    about = "highest over lowest floor of three right orders, H200 by its data sheet"
    return Finding("simulated", ratios, about=about)


@functools.cache  # half a second, and nothing here changes
def _highest_over_lowest(name: str) -> float:
    gemm, h200 = replace(GEMMS[name], block_k=512), DEVICES["H200"]
    arithmetic = 2 * sum(gemm.load) * gemm.d_in * gemm.d_out / h200.peak("bfloat16")
    found = [simulate(order, gemm, "H200") for order in ("row_major", "column_major", "grouped")]
    floors = [max(arithmetic, (one.bytes + one.y_bytes) / h200.bytes_per_s) for one in found]
    return max(floors) / min(floors)


def dispatch_flops(data: Path) -> Finding:
    """FLOPs of dispatch and combine by one-hot einsums over those by a table, d_model 256."""
    ratios = {}
    for tokens in (8, 2048):
        capacity = expert_capacity(1.25, tokens, 1, 16)
        ratios[f"{tokens:,} tokens"] = one_hot_flops(tokens, 16, capacity, 256) / table_flops(tokens, 1, 256)
    return Finding("counted", ratios, digits=0, about="FLOPs of dispatch and combine, top-1 of 16 experts, factor 1.25")
