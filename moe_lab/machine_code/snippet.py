"""A kernel of the reader's own, from a notebook cell, compiled for a GPU that is not here."""

import ast
import atexit
import inspect
import tempfile
import textwrap
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from moe_lab.machine_code.pool import Worker
from moe_lab.machine_code.rows import show_ops
from moe_lab.machine_code.targets import check_targets


class CompileError(ValueError):
    """A kernel that the compiler refused, with the compiler's own message."""


@dataclass(frozen=True)
class MachineCode:
    """What the compiler made: registers and spilled bytes a thread, shared bytes a program, matrix instructions.

    ``asm`` holds every stage as text, ``ttir``, ``ttgir``, ``llir``, and ``ptx`` or ``amdgcn``; all are attributes too.
    """

    kernel: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_ops: dict[str, int]
    asm: dict[str, str] = field(repr=False)

    def __getattr__(self, name: str) -> str:
        asm = self.__dict__.get("asm", {})
        if name in asm:
            return asm[name]
        raise AttributeError(f"MachineCode for {self.__dict__.get('target')} has no {name!r}; asm has {', '.join(asm)}")

    def __repr__(self) -> str:
        return (
            f"{self.kernel} for {self.target}: {self.registers} registers, {self.spill_bytes} bytes spilled, "
            f"{self.shared_bytes} bytes of shared memory, matrix instructions: {show_ops(self.matrix_ops)}"
        )


def compile_kernel(kernel: object, signature: dict, target: str = "sm_90", **options: object) -> MachineCode:
    """Compile a function under ``@triton.jit`` for a target, without a GPU; Triton's interpreter may be on.

    ``kernel`` is the function, or its source as text, of which the last kernel is compiled. ``signature`` gives each
    parameter a type, "*fp32" for a pointer, "i32" (or "i32:16", a multiple of 16), "fp32",
    "tensordesc<bf16[128, 64]>"; a parameter under ``tl.constexpr`` gets its value. ``options`` are those of a launch:
    num_warps, num_stages. The kernel's helpers and constants are taken along.

    Example:
        >>> source = '''
        ... @triton.jit
        ... def double(x, y, BLOCK: tl.constexpr):
        ...     place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        ...     tl.store(y + place, 2 * tl.load(x + place))
        ... '''
        >>> code = compile_kernel(source, {"x": "*fp32", "y": "*fp32", "BLOCK": 1024}, "gfx942")
        >>> code.spill_bytes, code.matrix_ops, "global_load_dwordx4" in code.amdgcn
        (0, {}, True)

    Raises CompileError with the compiler's message; ValueError for an unknown target, a signature that does not fit,
    or a kernel whose source cannot be found; ImportError where there is no Triton.
    """
    (target,) = check_targets([target])
    types = _as_json(signature)
    text, name = (kernel, None) if isinstance(kernel, str) else (_collect_source(kernel), _function_of(kernel).__name__)
    with tempfile.TemporaryDirectory(prefix="moe-lab-") as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        answers, failed = _own_worker().ask(
            do="source", path=str(path), name=name, signature=types, target=target, options=_plain_options(options)
        )
    if failed:
        raise CompileError(failed) from None
    (answer,) = answers
    measured = answer["measured"]
    if not measured.pop("ok"):
        raise CompileError(measured["error"])
    measured.pop("error")
    return MachineCode(kernel=answer["kernel"], target=target, asm=answer["asm"], **measured)


def _as_json(signature: dict) -> dict:
    """Types and constants as the worker reads them; Triton's dtypes are constants too."""
    if not isinstance(signature, dict):
        raise TypeError(f"signature must be a dict of types and constants by parameter, got {type(signature).__name__}")
    plain = {}
    for name, value in signature.items():
        if not isinstance(value, int | float | str | None):
            if not hasattr(value, "primitive_bitwidth"):
                raise ValueError(f"{name} must be a type, a number, a string or a dtype of Triton's, got {value!r:.80}")
            value = {"dtype": value.name}
        plain[name] = value
    return plain


def _plain_options(options: dict) -> dict:
    for name, value in options.items():
        if not isinstance(value, int | float | str | None):
            raise ValueError(f"{name} must be a number or a string, got {value!r:.80}")
    return options


@cache
def _own_worker() -> Worker:
    """One worker for the whole session: starting it takes longer than compiling."""
    worker = Worker()
    atexit.register(worker.close)
    return worker


def _function_of(kernel: object):
    """The plain function inside of whatever ``@triton.jit`` and the like made of it."""
    while not inspect.isfunction(kernel) and hasattr(kernel, "fn"):
        kernel = kernel.fn
    if not inspect.isfunction(kernel):
        raise TypeError(f"kernel must be a function under @triton.jit, or source text; got {type(kernel).__name__}")
    return kernel


def _collect_source(kernel: object) -> str:
    """The kernel's source, after that of everything it names: helpers, constants, modules."""
    found: dict[str, str] = {}
    _collect(_function_of(kernel), found)
    return "\n".join(found.values())


def _collect(function, found: dict[str, str], callers: tuple = ()) -> None:
    """Add what a function names, and then itself."""
    if function in callers:
        raise ValueError(f"{function.__name__} calls itself, which Triton does not compile")
    definition = _definition(function)
    nodes = list(ast.walk(ast.parse(definition)))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - own
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    around = {**function.__globals__, **{name: cell.cell_contents for name, cell in closure}}
    for name in sorted(names & set(around)):
        if name in ("triton", "tl"):  # every source has them
            continue
        text = _define(name, around[name], found, (*callers, function))
        if text is not None:
            _add(name, text, found)
    _add(function.__name__, f"@triton.jit\n{definition}", found)


def _add(name: str, text: str, found: dict[str, str]) -> None:
    if found.setdefault(name, text) != text:
        raise ValueError(f"the kernel and its helpers mean two different things by {name!r}")


def _define(name: str, value: object, found: dict[str, str], callers: tuple) -> str | None:
    """A line that gives ``name`` this value in another process; None for a helper, which `_collect` writes out."""
    import triton

    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}\n"
    if isinstance(value, triton.language.constexpr):
        return f"{name} = tl.constexpr({_literal(value.value)})\n"
    if isinstance(value, triton.language.dtype):
        return f"{name} = tl.dtype({value.name!r})\n"
    if isinstance(value, int | float | str | None):
        return f"{name} = {_literal(value)}\n"
    module = getattr(value, "__module__", "") or ""
    if module.split(".")[0] == "triton" and hasattr(value, "__name__") and not hasattr(value, "fn"):
        return f"from {module} import {value.__name__} as {name}\n"
    if not hasattr(value, "fn"):
        raise ValueError(f"the kernel uses {name}, a {type(value).__name__}, which only this process has")
    function = _function_of(value)
    if (function.__module__ or "").split(".")[0] == "triton":
        return f"from {function.__module__} import {function.__name__} as {name}\n"
    _collect(function, found, callers)
    return None if name == function.__name__ else f"{name} = {function.__name__}\n"


def _literal(value: object) -> str:
    return f"float({str(value)!r})" if isinstance(value, float) else repr(value)  # inf and nan have no literal


def _definition(function) -> str:
    """The source from ``def`` on, without decorators."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ValueError(f"the source of {function.__name__} cannot be found ({error}); give it as text") from error
    (node,) = ast.parse(source).body
    return "\n".join(source.splitlines()[node.lineno - 1 :]) + "\n"
