"""Patients who cannot add up: FLOPs of experts that rest, and a test that repeats the mistake it should find."""

import torch

from moe_lab.clinic.patient import Function, Law, Patient

# ---------------------------------------------------------------- FLOPs of experts that rest


def layer_flops(tokens, d_model, d_dense, d_expert, num_experts, top_k):
    """FLOPs of an MoE layer, forward: router and experts (gate, up, down); d_dense is the width of dense layers."""
    router = 2 * tokens * d_model * num_experts
    experts = num_experts * 6 * tokens * d_model * d_expert
    return router + experts


def _flops(experts: Function, router: Function = lambda t, d, e: 2 * t * d * e) -> Function:
    """FLOPs, with those of experts and router to replace."""

    def flops(tokens, d_model, d_dense, d_expert, num_experts, top_k):
        arguments = {"t": tokens, "d": d_model, "dense": d_dense, "w": d_expert, "e": num_experts, "k": top_k}
        return router(tokens, d_model, num_experts) + experts(**arguments)

    return flops


def _by_rows(tokens, d_model, d_dense, d_expert, num_experts, top_k):
    rows, products = tokens * top_k, [(d_model, 2 * d_expert), (d_expert, d_model)]
    return 2 * tokens * d_model * num_experts + sum(2 * rows * inner * outer for inner, outer in products)


_chosen = _flops(lambda t, d, dense, w, e, k: 6 * t * k * d * w)


def _costs(*arguments: int, spec: int | None = None) -> Law:
    def law(flops: Function) -> str | None:
        yours, wanted = flops(*arguments), _chosen(*arguments) if spec is None else spec
        return None if yours == wanted else f"yours {yours:,}, spec {wanted:,}"

    return law


def _resting_is_cheap(flops: Function) -> str | None:
    few, many = flops(10, 8, 32, 16, 4, 2), flops(10, 8, 32, 16, 64, 2)
    if many - few != 2 * 10 * 8 * 60:
        return f"60 more experts, as many chosen: yours {many - few:,} more, spec {2 * 10 * 8 * 60:,} for the router"
    return None


def _tell_flops(flops: Function) -> str:
    mixtral = (4096, 4096, 14336, 14336, 8, 2)
    times = flops(*mixtral) / _chosen(*mixtral)
    return (
        f"A layer of Mixtral 8x7B, 4,096 tokens: {flops(*mixtral) / 1e12:.2f} TFLOP forward. "
        f"Where the truth is an MFU of 40 %, this would report {40 * times:.0f} %."
    )


RESTING = Patient(
    "A GPU at more than 100 %",
    ("AI-Hypercomputer/maxtext#678", "alibaba/Pai-Megatron-Patch#485"),
    _tell_flops,
    layer_flops,
    {"the chosen experts": _chosen, "rows times products": _by_rows},
    {
        "the width of dense layers": _flops(lambda t, d, dense, w, e, k: 6 * t * k * d * dense),
        "one expert a token": _flops(lambda t, d, dense, w, e, k: 6 * t * d * w),
        "a multiply-add is one": _flops(lambda t, d, dense, w, e, k: 3 * t * k * d * w, lambda t, d, e: t * d * e),
        "two products an expert": _flops(lambda t, d, dense, w, e, k: 4 * t * k * d * w),
        "no router": _flops(lambda t, d, dense, w, e, k: 6 * t * k * d * w, lambda t, d, e: 0),
        "one token": _flops(lambda t, d, dense, w, e, k: 6 * k * d * w, lambda t, d, e: 2 * d * e),
    },
    {
        "by hand": _costs(1, 2, 7, 3, 4, 1, spec=2 * 2 * 4 + 6 * 2 * 3),
        "two experts": _costs(5, 4, 16, 8, 8, 2),
        "all experts": _costs(5, 4, 16, 8, 3, 3),
        "resting experts cost the router's column": _resting_is_cheap,
        "Mixtral 8x7B": _costs(4096, 4096, 14336, 14336, 8, 2),
        "a width of its own": _costs(64, 2048, 5632, 1408, 60, 4),
    },
)

# ---------------------------------------------------------------- a test with the same mistake


def active_params(d_model, d_expert, d_shared, num_experts, top_k):
    """Parameters of an MoE layer that one token uses: router, chosen experts, one shared expert d_shared wide."""
    router = d_model * num_experts
    expert = 3 * d_model * d_expert
    return router + top_k * expert + expert


def twin_test(count):
    """The test that came with `active_params`."""
    d_model, d_expert, d_shared, num_experts, top_k = 2048, 1408, 5632, 60, 4
    expected = d_model * num_experts + (top_k + 1) * 3 * d_model * d_expert
    return count(d_model, d_expert, d_shared, num_experts, top_k) == expected


def _formula(
    shared: Function, chosen: Function = lambda w, e, k: k * w, router: int = 1, matrices: int = 3
) -> Function:
    """The count, with the width of what is shared and chosen, and the numbers of matrices, to replace."""

    def count(d_model, d_expert, d_shared, num_experts, top_k):
        wide = chosen(d_expert, num_experts, top_k) + shared(d_expert, d_shared, top_k)
        return router * d_model * num_experts + matrices * d_model * wide

    return count


def _by_matrices(d_model, d_expert, d_shared, num_experts, top_k):
    """Build the matrices that a token meets, without memory, and count their numbers."""
    widths = [d_expert] * top_k + [d_shared]
    sizes = [pair for width in widths for pair in ((width, d_model), (width, d_model), (d_model, width))]
    return sum(torch.empty(*pair, device="meta").numel() for pair in [(num_experts, d_model), *sizes])


_whole = _formula(lambda w, shared, k: shared)


def _uses(*arguments: int, spec: int | None = None) -> Law:
    def law(count: Function) -> str | None:
        yours, wanted = count(*arguments), _by_matrices(*arguments) if spec is None else spec
        return None if yours == wanted else f"yours {yours:,}, spec {wanted:,}"

    return law


QWEN = {"d_model": 2048, "d_expert": 1408, "d_shared": 5632, "num_experts": 60, "top_k": 4}
"""Sizes of an MoE layer of Qwen1.5-MoE-A2.7B, which has 24; published: 2.7 billion active parameters."""


def _tell_params(count: Function) -> str:
    attention, embeddings = 24 * 4 * 2048**2, 2 * 151_936 * 2048
    active = 24 * count(*QWEN.values()) + attention + embeddings
    return (
        f"Its test passes: {twin_test(count)}. For Qwen1.5-MoE-A2.7B, with attention and embeddings, "
        f"{active / 1e9:.2f} billion active parameters; published are 2.7."
    )


TWIN = Patient(
    "The test passes, and that is no comfort",
    ("AI-Hypercomputer/maxtext#4017",),
    _tell_params,
    active_params,
    {"matrix by matrix": _by_matrices, "a formula": _whole},
    {
        "shared once for each chosen": _formula(lambda w, shared, k: k * shared),
        "no shared expert": _formula(lambda w, shared, k: 0),
        "all experts": _formula(lambda w, shared, k: shared, lambda w, e, k: e * w),
        "widths mixed up": _formula(lambda w, shared, k: w, lambda w, e, k: k * 4 * w),
        "two matrices": _formula(lambda w, shared, k: shared, matrices=2),
        "no router": _formula(lambda w, shared, k: shared, router=0),
    },
    {
        "by hand": _uses(2, 3, 5, 4, 1, spec=2 * 4 + 3 * 2 * 3 + 3 * 2 * 5),
        "no shared expert": _uses(4, 8, 0, 6, 2),
        "a wide shared expert": _uses(4, 8, 32, 6, 2),
        "as wide as the others": _uses(4, 8, 8, 6, 2),
        "all experts": _uses(4, 8, 16, 3, 3),
        "Qwen1.5-MoE-A2.7B": _uses(*QWEN.values()),
    },
)
