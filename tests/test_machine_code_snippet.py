"""`compile_kernel`: a reader's own kernel to machine code, from a cell or from text, with what it needs around it."""

import linecache

import pytest
import triton
import triton.language as aliased
import triton.language as tl

from moe_lab.machine_code import CompileError, MachineCode, compile_kernel
from moe_lab.machine_code.snippet import _collect_source

SIDE = tl.constexpr(64)


@triton.jit
def square(first, count):
    """Offsets of a square tile."""
    place = tl.arange(0, SIDE)
    return (first + place)[:, None] * count + place[None, :]


@triton.jit
def product(a, b, total):
    return tl.dot(a, b, total)


multiply = product  # another name for it


@triton.jit
def matmul(x, y, z, K: tl.constexpr, DTYPE: tl.constexpr = tl.float32):
    total = tl.zeros((SIDE, SIDE), DTYPE)
    for k in range(0, K, SIDE):
        total = multiply(tl.load(x + square(0, K) + k), tl.load(y + square(k, SIDE)), total)
    aliased.store(z + square(0, SIDE), total)


MATMUL = {"x": "*fp16", "y": "*fp16", "z": "*fp32", "K": 128}


@pytest.mark.parametrize(
    ("target", "kind"),
    [("sm_80", "mma"), ("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("gfx942", "mfma"), ("gfx950", "mfma")],
)
def test_helpers_and_constants_come_along_and_every_target_multiplies(target, kind):
    code = compile_kernel(matmul, MATMUL, target, num_warps=4)
    assert isinstance(code, MachineCode) and (code.kernel, code.target) == ("matmul", target)
    assert list(code.matrix_ops) == [kind] and code.spill_bytes == 0 and 16 < code.registers <= 256
    assert code.shared_bytes >= 2 * 64 * 64 * 2, "two tiles of 64 x 64 in float16"
    assembly = code.ptx if target.startswith("sm") else code.amdgcn
    assert assembly == code.asm["ptx" if target.startswith("sm") else "amdgcn"] and "matmul" in assembly
    assert "tt.dot" in code.ttir and code.ttgir and code.llir
    assert repr(code).startswith(f"matmul for {target}: {code.registers} registers, 0 bytes spilled, ")


def test_a_text_that_a_target_has_not():
    code = compile_kernel(matmul, MATMUL, "gfx942")
    with pytest.raises(AttributeError, match=r"MachineCode for gfx942 has no 'ptx'; asm has .*amdgcn"):
        code.ptx  # noqa: B018
    assert "asm" not in repr(code) and not hasattr(code, "cubin")


def test_constants_decide():
    once, twice = (compile_kernel(matmul, MATMUL | {"K": 64 * n}, "sm_80").ptx for n in (1, 32))
    assert once.count("mma.sync") != twice.count("mma.sync") or len(once) != len(twice)


def define(text, **around):
    """As IPython defines what is in a cell: from text that only linecache has."""
    name = f"<cell {define.cells}>"
    define.cells += 1
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    space = {"triton": triton, "tl": tl, **around}
    exec(compile(text, name, "exec"), space)
    return space


define.cells = 0


def test_a_kernel_of_a_notebook_cell():
    space = define("""
@triton.jit
def add(x, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + place, tl.load(x + place, mask=place < n) + 1, mask=place < n)
""")
    signature = {"x": "*fp32", "n": "i32", "BLOCK": 1024}
    assert "add" in compile_kernel(space["add"], signature).ptx
    aligned = compile_kernel(space["add"], signature | {"n": "i32:16"})
    assert "ld.global.v4" in aligned.ptx or "v4.b32" in aligned.ptx, "masks of 4 numbers at a time are equal"
    assert "v4" not in compile_kernel(space["add"], signature).ptx


def test_a_kernel_under_autotune_and_heuristics():
    space = define("""
@triton.autotune([triton.Config({"BLOCK": 64})], key=[])
@triton.heuristics({"EVEN": lambda arguments: True})
@triton.jit
def add(x, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 1)
""")
    assert compile_kernel(space["add"], {"x": "*i32", "BLOCK": 64, "EVEN": True}, "gfx942").kernel == "add"


def made_with(value):
    number = tl.constexpr(value)

    @triton.jit
    def store(x):
        tl.store(x, number)

    return store


def test_a_closure_brings_its_own_value():
    assert "41" in compile_kernel(made_with(41), {"x": "*i32"}).ttir
    assert "43" in compile_kernel(made_with(43), {"x": "*i32"}).ttir


def test_constants_that_have_no_literal():
    text = "@triton.jit\ndef fill(x):\n    tl.store(x + tl.arange(0, 1), tl.full((1,), LEAST, NARROW).to(tl.float32))\n"
    for narrow in (tl.float16, tl.constexpr(tl.float16)):
        fill = define(text, LEAST=tl.constexpr(float("-inf")), NARROW=narrow)["fill"]
        assert "0xFF800000" in compile_kernel(fill, {"x": "*fp32"}).ttir
    assert "LEAST = float('nan')" in _collect_source(define(text, LEAST=float("nan"), NARROW=1)["fill"])


def test_the_last_kernel_of_a_text():
    text = """
        @triton.jit
        def helper(x):
            return x + 1

        @triton.jit
        def last(x):
            tl.store(x, helper(tl.load(x)))
    """
    assert compile_kernel(text, {"x": "*fp32"}, "sm_80").kernel == "last"


def helper_of(name, text):
    return define(f"@triton.jit\ndef {name}(x):\n    {text}\n")[name]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tl.store(x, tl.loda(x))", "has no attribute 'loda'"),
        ("tl.store(x, N)", "Cannot access global variable N"),
        ("tl.static_assert(False, 'never')", "never"),
    ],
)
def test_the_compilers_own_words(text, says):
    space = define(f"@triton.jit\ndef kernel(x):\n    {text}\n", N=4)
    with pytest.raises(CompileError, match=says):
        compile_kernel(space["kernel"], {"x": "*fp32"})


def test_the_message_is_that_of_the_innermost_function():
    space = define("@triton.jit\ndef kernel(x):\n    inner(x)\n", inner=helper_of("inner", "tl.stoer(x, 1)"))
    with pytest.raises(CompileError, match=r"(?s)at 2:.*def inner.*stoer") as caught:
        compile_kernel(space["kernel"], {"x": "*fp32"})
    assert "def kernel" not in str(caught.value)


def test_too_much_shared_memory_is_an_error():
    text = """
    @triton.jit
    def big(x, y):
        place = tl.arange(0, 256)[:, None] * 256 + tl.arange(0, 256)[None, :]
        a = tl.load(x + place)
        tl.store(y + place, tl.dot(a, a.T))
    """
    with pytest.raises(CompileError, match=r"shared memory: \d+ bytes, gfx942 has 65536"):
        compile_kernel(text, {"x": "*bf16", "y": "*fp32"}, "gfx942", num_warps=8)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(kernel=5), TypeError, "kernel must be a function under @triton.jit, or source text; got int"),
        (dict(kernel="x = 1"), CompileError, "the source has no function under @triton.jit"),
        (dict(kernel="def f(:"), CompileError, "SyntaxError"),
        (dict(kernel="import os\nos._exit(3)"), CompileError, r"the compiler's process ended \(exit code 3\)"),
        (dict(target="sm_75"), ValueError, "target must be one of sm_80, .*; got 'sm_75'"),
        (dict(signature=["x"]), TypeError, "signature must be a dict of types and constants by parameter, got list"),
        (dict(signature={"x": "*fp16"}), CompileError, "signature lacks 'y'"),
        (dict(signature=MATMUL | {"w": 1}), CompileError, "signature has 'w', and matmul takes x, y, z, K, DTYPE"),
        (dict(signature=MATMUL | {"x": "*float"}), CompileError, r"x must be one of .*fp32.*; got '\*float'"),
        (dict(signature=MATMUL | {"x": 5}), CompileError, "x must be a type such as .*, got 5"),
        (dict(signature=MATMUL | {"K": [5]}), ValueError, r"K must be a type, a number, .*, got \[5\]"),
        (dict(num_warp=4), CompileError, "options has 'num_warp', which sm_90 does not know; .*num_warps"),
        (dict(num_warps=3), CompileError, "power of 2"),
        (dict(num_warps=[4]), ValueError, r"num_warps must be a number or a string, got \[4\]"),
    ],
)
def test_what_is_refused(change, error, says, unchecked_shapes):
    arguments = dict(kernel=matmul, signature=MATMUL, target="sm_90") | change
    with pytest.raises(error, match=says):
        compile_kernel(**arguments)


def test_what_only_this_process_has_is_refused():
    cases = {
        "the kernel uses plain, a function, which only this process has": dict(plain=lambda x: x),
        "the kernel uses plain, a list, which only this process has": dict(plain=[1]),
    }
    for says, around in cases.items():
        space = define("@triton.jit\ndef kernel(x):\n    tl.store(x, plain(1))\n", **around)
        with pytest.raises(ValueError, match=says):
            compile_kernel(space["kernel"], {"x": "*fp32"})


def test_recursion_is_refused():
    space = define("@triton.jit\ndef kernel(x):\n    kernel(x)\n")
    with pytest.raises(ValueError, match="kernel calls itself, which Triton does not compile"):
        compile_kernel(space["kernel"], {"x": "*fp32"})


def test_one_name_for_two_things_is_refused():
    inner = define("@triton.jit\ndef inner(x):\n    tl.store(x, N)\n", N=tl.constexpr(1))["inner"]
    space = define("@triton.jit\ndef kernel(x):\n    inner(x + N)\n", N=tl.constexpr(2), inner=inner)
    with pytest.raises(ValueError, match="mean two different things by 'N'"):
        compile_kernel(space["kernel"], {"x": "*fp32"})
    same = define("@triton.jit\ndef kernel(x):\n    inner(x + N)\n", N=tl.constexpr(1), inner=inner)
    assert compile_kernel(same["kernel"], {"x": "*i32"}).kernel == "kernel"


def test_a_source_that_nobody_has():
    space = {"triton": triton, "tl": tl}
    linecache.clearcache()
    with pytest.raises(ValueError, match=r"the source of kernel cannot be found .*; give it as text"):
        exec("def kernel(x):\n    pass", space)
        compile_kernel(space["kernel"], {"x": "*fp32"})
