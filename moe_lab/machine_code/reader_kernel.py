"""Inside a worker: compile a kernel that was given as source text, with its types written out."""

import importlib.util
import inspect
from pathlib import Path

import triton
from triton.compiler import ASTSource, make_backend

from moe_lab.machine_code.launches import gpu_target, measure


def compile_source(path: str, name: str | None, signature: dict, target: str, options: dict) -> dict:
    """Numbers and texts of the function ``name`` in the file, or of the last kernel in it."""
    kernel = find_kernel(path, name)
    known = vars(make_backend(gpu_target(target)).parse_options({}))
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"options has {unknown[0]!r}, which {target} does not know; it knows {', '.join(sorted(known))}"
        )
    types, constants, attributes = split_signature(kernel, signature)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    code = triton.compile(source, target=gpu_target(target), options=options)
    texts = {kind: text for kind, text in code.asm.items() if isinstance(text, str)}
    return {"kernel": kernel.__name__, "measured": measure(code, target), "asm": texts}


def find_kernel(path: str, name: str | None):
    """Run the file as a module, which has `triton` and `tl`, and take its kernel."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    vars(module).update(triton=triton, tl=triton.language)
    spec.loader.exec_module(module)
    kernels = {key: value for key, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    if not kernels:
        raise ValueError("the source has no function under @triton.jit")
    return kernels[name] if name else list(kernels.values())[-1]


def split_signature(kernel, signature: dict) -> tuple[dict, dict, dict]:
    """Types, constants and alignments as Triton wants them; pointers start at multiples of 16 bytes, as torch's do."""
    names = [parameter.name for parameter in kernel.params]
    if unknown := sorted(set(signature) - set(names)):
        raise ValueError(f"signature has {unknown[0]!r}, and {kernel.__name__} takes {', '.join(names)}")
    types, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name, value = parameter.name, signature.get(parameter.name, parameter.default)
        if value is inspect.Parameter.empty:
            raise ValueError(f"signature lacks {name!r}")
        if parameter.is_constexpr:
            constant = triton.language.dtype(value["dtype"]) if isinstance(value, dict) else value
            types[name], constants[(place,)] = "constexpr", constant
            continue
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a type such as '*fp32', 'i32' or 'fp32', got {value!r}")
        types[name], _, multiple = value.partition(":")
        if types[name].lstrip("*") not in known_types() and not types[name].startswith("tensordesc<"):
            raise ValueError(f"{name} must be one of {', '.join(known_types())}, with * for a pointer; got {value!r}")
        if types[name].startswith("*") or multiple == "16":
            attributes[(place,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def known_types() -> list[str]:
    """The numbers that a parameter may be or point to, as Triton writes them in a signature."""
    dtype = triton.language.dtype
    whole = [name.replace("uint", "u").replace("int", "i") for name in (*dtype.SINT_TYPES, *dtype.UINT_TYPES)]
    return ["i1", *(name for name in whole if name != "i1"), *dtype.FP_TYPES]
