"""Who made the claims, when, and where they can be read."""

from moe_lab.scoreboard.facts import Source

AMD = Source(
    "Wang, on amd.com",
    "Lei Wang (Evergrid.AI), Revolutionizing Mixture of Experts Performance: 10x Speedup on AMD Instinct GPUs",
    "2025-04-10",
    "guest article on amd.com; sgl-project/sglang#3613, taken out again by #3982",
)
PYTORCH_2024 = Source(
    "PyTorch blog",
    "Hoque, Wright, Virós Martin and Yang, Accelerating MoE model inference with Locality-Aware Kernel Design",
    "2024-04-04",
    "PyTorch blog; meta-pytorch/applied-ai, col_major_moe_gemm, issues 16 and 25",
)
PYTORCH_2025 = Source(
    "PyTorch blog",
    "Accelerating MoE's with a Triton Persistent Cache-Aware Grouped GEMM Kernel",
    "2025",
    "PyTorch blog, read through a mirror; meta-pytorch/applied-ai, kernels/MoE/group_GEMM/triton",
)
DEEPSPEED = Source(
    "DeepSpeed-MoE",
    "Rajbhandari et al., DeepSpeed-MoE",
    "2022-01",
    "arXiv:2201.05596, sections 4 and 5 and Table 6, read in a conversion",
)
SWITCH = Source(
    "Switch Transformers",
    "Fedus, Zoph and Shazeer, Switch Transformers",
    "2021-01",
    "arXiv:2101.03961, sections 2.2, 3.1 and 3.2, Table 1, read in a conversion",
)
COMPARISON = Source(
    "the comparison",
    "the comparison that this lab was started from",
    "2026-11",
    "its figures stand in README.md and in lessons 04 and 05",
)
SOURCES = (AMD, PYTORCH_2024, PYTORCH_2025, DEEPSPEED, SWITCH, COMPARISON)
