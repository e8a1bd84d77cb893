"""Suite "dispatch": tokens carried to experts by one-hot einsums and by a table, where DeepSpeed's "6x" is from."""

import functools

import torch

from moe_lab.bench.record import Case
from moe_lab.bench.rows import Measured, as_percentiles
from moe_lab.dispatch import DISPATCHES, carry, one_hot_flops, table_flops
from moe_lab.profiling import time_interleaved
from moe_lab.routers import expert_capacity, route

D_MODEL = 256
CAPACITY_FACTOR = 1.25
SIZES = [(tokens, num_experts) for tokens in (8, 128, 2048) for num_experts in (16, 128)]
TOLERANCE = 1e-5


def dispatch(quick: bool = False) -> list[Case]:
    """A case for each number of tokens and of experts, top-1, on the GPU if there is one."""
    sizes = [(16, 4)] if quick else SIZES
    return [Case(f"{size}", lambda seconds, size=size: compare(*size, seconds)) for size in sizes]


def compare(tokens: int, num_experts: int, seconds: float) -> list[Measured]:
    """There and straight back, both ways, no experts between; each must give the tokens times their weights."""
    device, draw = "cuda" if torch.cuda.is_available() else "cpu", torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, num_experts, generator=draw).to(device)
    routing = route(logits, 1, "switch", capacity_factor=CAPACITY_FACTOR)
    x = torch.randn(tokens, D_MODEL, generator=draw).to(device)
    capacity = expert_capacity(CAPACITY_FACTOR, tokens, 1, num_experts)
    wanted = (x.double() * routing.weights.double()).float()
    calls = {way: functools.partial(carry, x, routing, capacity, dispatch=way) for way in DISPATCHES}
    errors = {way: float((call() - wanted).norm() / wanted.norm()) for way, call in calls.items()}
    flops = {"one_hot": one_hot_flops(tokens, num_experts, capacity, D_MODEL), "table": table_flops(tokens, 1, D_MODEL)}
    timings = time_interleaved(calls, repeats=51, seconds=seconds / 2)
    shape = {"tokens": tokens, "d_model": D_MODEL, "num_experts": num_experts, "top_k": 1}
    return [
        Measured(
            way,
            "forward",
            shape,
            "float32",
            error=errors[way],
            tolerance=TOLERANCE,
            flops=flops[way],
            version=torch.__version__,
            call=f'carry(x, routing, {capacity}, dispatch="{way}")',
            **as_percentiles(timing),
        )
        for way, timing in timings.items()
    ]
