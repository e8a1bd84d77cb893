"""What a profile of the layer compares: our backends, Transformers' grouped_mm, and the dense layer of equal FLOPs."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from moe_lab.activations import activate
from moe_lab.checks import check_whole
from moe_lab.experts import BACKENDS, check_backend
from moe_lab.layers import MoE
from moe_lab.profiling.profiler import profile
from moe_lab.profiling.trace import Trace

DIRECTIONS = ("forward", "forward+backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Relative error (Frobenius) that an implementation may have against the loop in the same dtype."""
DENSE = "dense"
PEER = "transformers"
NAMES = (*BACKENDS, PEER, DENSE)


class ProfileShape(NamedTuple):
    """The sizes of a layer and the tokens that it is given."""

    tokens: int
    d_model: int
    d_expert: int
    num_experts: int
    top_k: int


SHAPES = {
    "small": ProfileShape(256, 256, 128, 16, 4),
    "medium": ProfileShape(1024, 512, 256, 64, 8),
    "few experts": ProfileShape(1024, 512, 1024, 8, 2),
}
"""Sizes that a CPU finishes in well under a second; the last two have equal FLOPs."""


def read_shape(text: str) -> ProfileShape:
    """A shape by its name in `SHAPES`, or five whole numbers with commas.

    Example:
        >>> read_shape("64,32,16,8,2")
        ProfileShape(tokens=64, d_model=32, d_expert=16, num_experts=8, top_k=2)

    Raises ValueError for another name, or sizes that are not five whole numbers above 0 with top_k <= num_experts.
    """
    if text in SHAPES:
        return SHAPES[text]
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 5:
        fields = ",".join(ProfileShape._fields)
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, or {fields} as whole numbers; got {text!r}")
    for name, size in zip(ProfileShape._fields, sizes, strict=True):
        check_whole(name, size, 1, sizes[3] if name == "top_k" else None)
    return ProfileShape(*sizes)


def profile_layers(
    shape: ProfileShape, names: list[str], direction: str, dtype: str, *, repeats: int = 5, ceilings: dict | None = None
) -> list[Trace]:
    """A trace of each of `make_calls`, one after another, with a progress bar; ``ceilings`` go into every ``about``.

    FLOPs and bytes of Triton's kernels are those of `triton_costs`, forward alone.
    """
    traces = []
    for name in tqdm(names, desc="profile", unit="layer"):
        call = make_calls(shape, [name], direction, dtype)[name]  # one at a time: weights may be large
        about = {"implementation": name, "direction": direction, "dtype": dtype, "shape": shape._asdict()}
        about["ceilings"] = ceilings or {}
        costs = triton_costs(shape, DTYPES[dtype].itemsize) if (name, direction) == ("triton", DIRECTIONS[0]) else None
        traces.append(profile(call, about=about, device=_device(), repeats=repeats, costs=costs))
    return traces


def trace_path(out: Path, trace: Trace) -> Path:
    """``out`` itself if it is named .json, else a file in it that is named by what ran."""
    if out.suffix == ".json":
        return out
    about = trace.about
    words = (about["implementation"], about["direction"].replace("+", "-"), about["dtype"], about["kind"])
    return out / f"{'-'.join(words)}.json"


def triton_costs(shape: ProfileShape, item_bytes: int) -> dict[str, tuple[int, int]]:
    """(FLOPs, bytes) of the kernels of one forward pass on backend "triton", as their own files count them.

    The sorting kernels, which move whole numbers alone, are left out.

    Example:
        >>> costs = triton_costs(ProfileShape(64, 32, 16, 8, 2), item_bytes=2)
        >>> sum(flops for flops, _ in costs.values()) == 64 * 2 * 6 * 32 * 16
        True
    """
    import moe_lab.kernels  # noqa: F401  (before Triton, always)
    from moe_lab.kernels import combine, grouped_gemm, grouped_up, permute

    tokens, d_model, d_expert, num_experts, top_k = shape
    tile = {"block_m": 1, "itemsize": item_bytes}  # what is compulsory does not depend on tiles
    down = {"rows": tokens * top_k, "num_experts": num_experts, "d_in": d_expert, "d_out": d_model}
    rows = {"tokens": tokens, "d_model": d_model, "num_experts": num_experts, "top_k": top_k}
    return {
        "_permute_kernel": permute.cost(**rows, **tile),
        "_grouped_up_kernel": grouped_up.cost(**rows, d_expert=d_expert, **tile),
        "_grouped_gemm_kernel": grouped_gemm.cost(**down, **tile),
        "_combine_kernel": combine.cost(**rows, **tile),
    }


def make_calls(
    shape: ProfileShape, names: list[str], direction: str = "forward", dtype: str = "float32", seed: int = 0
) -> dict[str, Callable[[], object]]:
    """Functions without arguments, by name, that each compute the layer once on the same tokens.

    A name, one of `NAMES`, is a backend of `MoE`, router included; "transformers", the block of Qwen3-MoE with these
    weights and ``grouped_mm`` for its experts; or "dense", a SwiGLU of width top_k * d_expert, whose FLOPs are the
    experts' of all the others (it has no router). Each but the dense one is first held against the loop, Transformers'
    in float32: its router rounds the logits to the layer's dtype, and then a token may choose another expert, which is
    no mistake. It runs on the GPU if there is one. "forward" runs without gradients; "forward+backward" computes them
    for x and all weights, anew each time.

    Raises ValueError for an unknown name, direction or dtype, for "triton" without a GPU (the interpreter's times say
    nothing), and for an answer that is not the loop's; ImportError for Transformers where it is not installed.
    """
    _check_arguments(names, direction, dtype)
    torch.manual_seed(seed)
    layer = MoE(*shape[1:], backend="loop", renormalise=True).to(_device())
    x = torch.randn(shape.tokens, shape.d_model, device=_device())
    calls = {}
    for name in names:
        module = _make_module(name, layer, shape)
        if name == PEER:
            _check(name, module, layer, x, TOLERANCES["float32"])
        module = module.to(DTYPES[dtype])
        if name in BACKENDS:
            _check(name, module, copy.deepcopy(layer).to(DTYPES[dtype]), x.to(DTYPES[dtype]), TOLERANCES[dtype])
        calls[name] = _call(module, x.to(DTYPES[dtype]).requires_grad_(), direction)
    return calls


def _check_arguments(names: list[str], direction: str, dtype: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}; got {direction!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"names must be among {', '.join(NAMES)}; got {unknown[0]!r}")
    if "triton" in names and not torch.cuda.is_available():
        raise ValueError("names must be without 'triton' where there is no GPU: the interpreter's times say nothing")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _make_module(name: str, layer: MoE, shape: ProfileShape) -> nn.Module:
    """The implementation in float32, with the weights of ``layer``."""
    if name == DENSE:
        return _Dense(shape).to(layer.w_down)
    if name == PEER:
        return _peer(layer, shape)
    module = copy.deepcopy(layer)
    module.backend = check_backend(name)
    return module


class _Dense(nn.Module):
    """down(silu(gate(x)) * up(x)), as wide as top_k experts."""

    def __init__(self, shape: ProfileShape):
        super().__init__()
        width = shape.top_k * shape.d_expert
        self.w_gate_up = nn.Parameter(torch.randn(2 * width, shape.d_model) / math.sqrt(shape.d_model))
        self.w_down = nn.Parameter(torch.randn(shape.d_model, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(activate(F.linear(x, self.w_gate_up), "swiglu"), self.w_down)


def _peer(layer: MoE, shape: ProfileShape) -> nn.Module:
    """Transformers' block with the weights of ``layer``."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    sizes = {"hidden_size": shape.d_model, "moe_intermediate_size": shape.d_expert}
    counts = {"num_experts": shape.num_experts, "num_experts_per_tok": shape.top_k, "norm_topk_prob": True}
    config = Qwen3MoeConfig(**sizes, **counts)
    config._experts_implementation = "grouped_mm"
    block = Qwen3MoeSparseMoeBlock(config).to(layer.w_down)
    with torch.no_grad():
        block.gate.weight.copy_(layer.router)
        block.experts.gate_up_proj.copy_(layer.w_gate_up)
        block.experts.down_proj.copy_(layer.w_down)
    return _Batched(block)


class _Batched(nn.Module):
    """A block that wants (batch, sequence, d_model)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x[None])[0]


def _check(name: str, module: nn.Module, layer: nn.Module, x: Tensor, tolerance: float) -> None:
    """Refuse a wrong answer, which is always fast."""
    with torch.no_grad():
        right = layer(x).double()
        error = float((module(x) - right).norm() / right.norm())
    if not error <= tolerance:
        raise ValueError(f"{name} is off by {error:.2g} from the loop, allowed {tolerance:g}")


def _call(module: nn.Module, x: Tensor, direction: str) -> Callable[[], object]:
    leaves, still, dy = [x, *module.parameters()], x.detach(), torch.ones_like(x)

    def forward() -> Tensor:
        with torch.no_grad():
            return module(still)

    def forward_and_backward() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        module(x).backward(dy)
        return x.grad

    return forward if direction == "forward" else forward_and_backward
