"""What is read from the compiler's own output: registers, spills, matrix instructions, and what would not launch."""

import pytest

from moe_lab.machine_code.reading import count_matrix_ops, find_excess, read_amdgcn, read_usage


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 \t{ %r159, %r160 }, { %r161 };", "mma"),
        ("\t@%p1 mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 { %f1 };", "mma"),
        ("\twgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%f1, %f2}, %rd1, %rd2, p, 1, 1, 0, 0;", "wgmma"),
        ("\t@%p85 tcgen05.mma.cta_group::1.kind::f16 [ %r1001 + 0 ], %rd46, %rd47, %r1003, %p84;", "tcgen05"),
        ("\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]", "mfma"),
        ("\tv_smfmac_f32_16x16x32_bf16 v[10:13], a[2:3], v[4:7], v1", "mfma"),
    ],
)
def test_each_kind_by_a_line_of_it(line, kind):
    assert count_matrix_ops(line) == {kind: 1}
    assert count_matrix_ops(f"{line}\n\tadd.s32 %r1, %r2, %r3;\n{line}\n") == {kind: 2}


@pytest.mark.parametrize(
    "line",
    [
        "\twgmma.fence.sync.aligned;",
        "\twgmma.wait_group.sync.aligned 1;",
        "\ttcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 512;",
        "\ttcgen05.ld.sync.aligned.32x32b.x128.b32 {%r1}, [%r2];",
        "\tfma.rn.f32 %f1, %f2, %f3, %f4;",
        "\tv_fma_f32 v1, v2, v3, v4",
        "\tv_accvgpr_read_b32 v1, a0",
    ],
)
def test_what_only_stands_near_them_is_not_counted(line):
    assert count_matrix_ops(line) == {}


def test_kinds_are_counted_apart():
    text = "\tmma.sync.aligned.m16n8k16\n\twgmma.mma_async.sync.aligned.m64n64k16\n\tmma.sync.aligned.m16n8k16\n"
    assert count_matrix_ops(text) == {"mma": 2, "wgmma": 1}


USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _dot_kernel:
  REG:{registers} STACK:{stack} SHARED:0 LOCAL:{local} CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.mark.parametrize(("registers", "stack", "local"), [(16, 0, 0), (255, 48, 0), (255, 0, 16), (32, 8, 4)])
def test_usage(registers, stack, local):
    assert read_usage(USAGE.format(registers=registers, stack=stack, local=local)) == (registers, stack + local)


def test_usage_of_several_functions_is_that_of_the_worst():
    text = USAGE.format(registers=40, stack=0, local=0) + USAGE.format(registers=90, stack=24, local=0)
    assert read_usage(text) == (90, 24)


@pytest.mark.parametrize("text", ["", "cuobjdump fatal: no kernel", " REG:12 SHARED:0"])
def test_usage_that_says_nothing(text):
    with pytest.raises(ValueError, match=r"cuobjdump -res-usage says nothing of registers"):
        read_usage(text)


AMDGCN = """
    .sgpr_count:     30
    .sgpr_spill_count: 2
    .vgpr_count:     {registers}
    .vgpr_spill_count: {spilled}
"""


def test_amdgcn():
    assert read_amdgcn(AMDGCN.format(registers=132, spilled=0)) == (132, 0)
    assert read_amdgcn(AMDGCN.format(registers=256, spilled=11)) == (256, 44), "4 bytes a register"
    with pytest.raises(ValueError, match=r"no \.vgpr_count"):
        read_amdgcn("v_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]")


def test_excess():
    assert find_excess("gfx942", 65536, 65536, 0) is None and find_excess("sm_100", 232448, 0, 512) is None
    assert find_excess("gfx942", 65536, 65537, 0) == "shared memory: 65537 bytes, gfx942 has 65536"
    assert find_excess("sm_100", 232448, 0, 1024) == "tensor memory: 1024 columns, sm_100 has 512"
