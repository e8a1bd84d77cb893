"""Kernels to machine code for GPUs that are not here: what the compiler made of them, and whether it got worse.

Triton needs no GPU to compile for one. Registers, spilled bytes, shared memory and matrix instructions say a good part
of what a timing would: whether a kernel fits, whether it uses the tensor cores, and whether a change broke either.

The work is done by processes of their own (`worker`), outside of Triton's interpreter: a compiler that crashes takes a
worker with it and nothing else.
"""

from moe_lab.machine_code.build import compile_kernels, select_jobs
from moe_lab.machine_code.record import compare, read_record, select_rows, write_record
from moe_lab.machine_code.rows import Row, describe
from moe_lab.machine_code.snippet import CompileError, MachineCode, compile_kernel
from moe_lab.machine_code.targets import TARGETS, targets_of

__all__ = [
    "TARGETS",
    "CompileError",
    "MachineCode",
    "Row",
    "compare",
    "compile_kernel",
    "compile_kernels",
    "describe",
    "read_record",
    "select_jobs",
    "select_rows",
    "targets_of",
    "write_record",
]
