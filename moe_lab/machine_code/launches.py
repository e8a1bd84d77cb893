"""Inside a worker: call a kernel file's launcher for a GPU that is not here, and compile every launch it makes.

So there is no second description of what is launched. The launcher gets tensors on "meta", which have a shape, a dtype
and no storage; Triton itself derives types, alignments and constants from the arguments, as it does before each launch.
"""

import importlib
import inspect
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from moe_lab.machine_code.reading import count_matrix_ops, find_excess, read_amdgcn, read_usage
from moe_lab.machine_code.targets import TARGETS, targets_of

SHAPE = "qwen3"
FEW_ROWS = 16  # rows of a tile in the configurations whose names end in _small


class Elsewhere:
    """What Triton asks of a driver before it launches; this one says that the GPU is the target."""

    def __init__(self, target: str):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """The architecture to compile for."""
        return gpu_target(self.target)

    def get_current_device(self) -> str:
        """The key under which Triton keeps what it compiled."""
        return self.target

    def get_current_stream(self, device: str) -> int:
        """Never used: nothing is launched."""
        return 0


def gpu_target(target: str) -> GPUTarget:
    """The target in Triton's own terms."""
    about = TARGETS[target]
    return GPUTarget(about.backend, about.architecture, about.lanes)


def kernel_names(folder: str | None) -> list[str]:
    """The kernel files in the folder, by name; those with a leading underscore are helpers."""
    package = importlib.import_module("moe_lab.kernels")
    if folder is not None and folder not in package.__path__:
        package.__path__.insert(0, folder)  # in front: its files may import the helpers of our own
    return sorted(path.stem for path in Path(package.__path__[0]).glob("*.py") if not path.name.startswith("_"))


def kernel_file(name: str):
    """The module of one kernel."""
    return importlib.import_module(f"moe_lab.kernels.{name}")


def ways_to_launch(kernel: str) -> dict[str, list[str | None]]:
    """The names in the kernel's `CONFIGS`, or [None]; and those in its `VARIANTS`, after None for the plain way."""
    module = kernel_file(kernel)
    names = list(getattr(module, "CONFIGS", None) or [None])
    for name in names:
        targets_of(name)  # refuses a name that means no GPU
    return {"configs": names, "variants": [None, *getattr(module, "VARIANTS", {})]}


def compile_launches(
    kernel: str, variant: str | None, config: str | None, target: str, say: Callable[..., None]
) -> None:
    """Compile every launch of one kernel file; ``say(launch=...)`` before each, ``say(row=...)`` after it."""
    launcher = getattr(kernel_file(kernel), kernel, None)
    if launcher is None:
        raise ValueError(f"{kernel}.py has no function {kernel} to launch it with")
    dtype = "float32" if config == "float32" else "bfloat16"
    inputs, options = make_arguments(kernel, variant, (config or "").endswith("_small"), dtype)
    launched = 0

    def compile_one(function, run, *arguments, **options):
        nonlocal launched
        launched += 1
        say(launch=function.__name__.strip("_").removesuffix("_kernel"))
        try:
            row = measure(run(function, *arguments, **options), target)
        except Exception as error:
            row = {"ok": False, "error": explain(error)}
        say(row=row)

    driver.set_active(Elsewhere(target))
    with launches_go_to(compile_one):
        launcher(*inputs, **options, **({} if config is None else {"config": config}))
    if not launched:
        raise ValueError(f"{kernel} launched no kernel on the shape {SHAPE!r}")


@lru_cache(maxsize=8)  # the targets of one configuration come one after the other
def make_arguments(kernel: str, variant: str | None, small: bool, dtype: str) -> tuple[tuple, dict]:
    """The arguments of the launcher, on "meta", and its keywords.

    What a variant changes goes to `make_inputs` if that takes it, and to the launcher unless it is among the inputs.
    """
    import torch

    module = kernel_file(kernel)
    if SHAPE not in module.SHAPES:
        raise ValueError(f"SHAPES of {kernel}.py has no {SHAPE!r}, the shape that kernels are compiled for")
    changes = {} if variant is None else module.VARIANTS[variant]
    making, launching = inspect.signature(module.make_inputs), inspect.signature(getattr(module, kernel))
    shape = {**module.SHAPES[SHAPE], **{name: value for name, value in changes.items() if name in making.parameters}}
    if small and "block_m" in shape:
        shape["block_m"] = FEW_ROWS
    inputs = module.make_inputs(**shape, dtype=getattr(torch, dtype), device="meta")
    free = set(launching.parameters) - set(launching.bind_partial(*inputs).arguments)
    if unknown := set(changes) - set(making.parameters) - free:
        raise ValueError(f"VARIANTS of {kernel}.py has {min(unknown)!r}, which neither {kernel} nor make_inputs takes")
    return inputs, {name: value for name, value in changes.items() if name in free}


@contextmanager
def launches_go_to(compile_one: Callable[..., None]) -> Iterator[None]:
    """While this lasts, ``kernel[grid](...)`` compiles and launches nothing."""
    run = triton.JITFunction.run

    def instead(self, *arguments, grid, warmup, **options):
        compile_one(self, run, *arguments, grid=grid, warmup=True, **options)

    triton.JITFunction.run = instead
    try:
        yield
    finally:
        triton.JITFunction.run = run


def measure(code, target: str) -> dict:
    """What a row says of a compiled kernel."""
    if "cubin" in code.asm:
        assembly = code.asm["ptx"]
        registers, spill_bytes = read_usage(resource_usage(code.asm["cubin"]))
    else:
        assembly = code.asm["amdgcn"]
        registers, spill_bytes = read_amdgcn(assembly)
    shared_bytes = code.metadata.shared
    excess = find_excess(
        target, TARGETS[target].shared_bytes, shared_bytes, getattr(code.metadata, "tmem_size", 0) or 0
    )
    return {
        "ok": excess is None,
        "registers": registers,
        "spill_bytes": spill_bytes,
        "shared_bytes": shared_bytes,
        "matrix_ops": count_matrix_ops(assembly),
        "error": excess,
    }


def resource_usage(cubin: bytes) -> str:
    """What NVIDIA's cuobjdump, which comes with Triton, says of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        # no shell, and no word of a reader's in it
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


def explain(error: BaseException) -> str:
    """The compiler's message: that of the innermost function, where one calls another, with its line.

    What follows in an assembler's message is its command, with files that are gone by then.
    """
    while isinstance(error.__cause__, triton.TritonError):
        error = error.__cause__
    said = str(error).partition("Repro command")[0].strip()
    return said if isinstance(error, triton.TritonError | ValueError) else f"{type(error).__name__}: {said}"
