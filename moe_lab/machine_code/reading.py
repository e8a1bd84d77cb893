"""What the compiler made, read from its own output: registers, spills, matrix instructions."""

import re

MATRIX_OPS = {
    "mma": ("mma.sync",),
    "wgmma": ("wgmma.mma_async",),
    "tcgen05": ("tcgen05.mma",),
    "mfma": ("v_mfma_", "v_smfmac_"),
}
"""Kind -> how it begins in PTX or in AMD's assembly: a warp's product, a warp group's, Blackwell's, CDNA's."""


def count_matrix_ops(assembly: str) -> dict[str, int]:
    """How often each kind of matrix instruction stands in the text; kinds that do not are left out.

    Example:
        >>> count_matrix_ops("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%f1}, %rd1;")
        {'wgmma': 1}
    """
    found = {kind: sum(map(assembly.count, beginnings)) for kind, beginnings in MATRIX_OPS.items()}
    return {kind: count for kind, count in found.items() if count}


def read_usage(usage: str) -> tuple[int, int]:
    """(registers, spilled bytes) a thread, from the answer of ``cuobjdump -res-usage``.

    What does not fit into registers goes to the thread's stack, in local memory, and ptxas counts both as one. So a
    kernel with an array of its own there would seem to spill; Triton makes such arrays for few operations.

    Example:
        >>> read_usage(" Function add:\\n  REG:255 STACK:48 SHARED:0 LOCAL:0 CONSTANT[0]:556 TEXTURE:0 SURFACE:0")
        (255, 48)

    Raises ValueError for a text without these fields.
    """
    numbers = {name: [int(n) for n in re.findall(rf"\b{name}:(\d+)", usage)] for name in ("REG", "STACK", "LOCAL")}
    if not numbers["REG"] or not numbers["STACK"]:
        raise ValueError(f"cuobjdump -res-usage says nothing of registers: {usage.strip()[:200]!r}")
    return max(numbers["REG"]), max(numbers["STACK"]) + max(numbers["LOCAL"], default=0)


def read_amdgcn(assembly: str) -> tuple[int, int]:
    """(vector registers, spilled bytes) a lane, from the metadata at the end of AMD's assembly; 4 bytes a register.

    Accumulation registers are counted: on CDNA 3 and later they are in the same file.

    Example:
        >>> read_amdgcn(".vgpr_count:     132\\n.vgpr_spill_count: 3")
        (132, 12)

    Raises ValueError for a text without these fields.
    """
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spilled = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    if registers is None or spilled is None:
        raise ValueError("the assembly has no .vgpr_count and .vgpr_spill_count")
    return int(registers[1]), 4 * int(spilled[1])


def find_excess(target: str, limit_bytes: int, shared_bytes: int, tensor_columns: int) -> str | None:
    """Why a program that was compiled could still not be launched, or None.

    Example:
        >>> find_excess("sm_80", 166912, 180224, 0)
        'shared memory: 180224 bytes, sm_80 has 166912'
    """
    if shared_bytes > limit_bytes:
        return f"shared memory: {shared_bytes} bytes, {target} has {limit_bytes}"
    if tensor_columns > 512:
        return f"tensor memory: {tensor_columns} columns, {target} has 512"
    return None
