"""Kernels in Triton's interpreter: any sizes and layouts against their references in float64, tables to the number.

float32 and float16 alone: the interpreter multiplies bfloat16 as if it were whole numbers, and the kernels refuse it.
"""

import importlib
import inspect

import torch
from hypothesis import strategies as st
from moe_lab.kernels.align_scan import align_scan
from moe_lab.kernels.align_serial import align_serial, align_serial_reference
from moe_lab.kernels.sort_tokens import RowTable, sort_tokens, sort_tokens_reference
from moe_lab.kernels.tile_order import ORDERS, tile_order, tile_order_reference
from moe_lab.kernels.topk_gate import SCORES

import moe_lab.kernels
from moe_lab import expert_mlp, route
from moe_lab.experts import SAVES
from moe_lab.operators.gate import gate

from .cases import attempt, fuzzed
from .tensors import LAYOUTS, lay_out
from .test_layers import check_case, layers

assert moe_lab.kernels  # switches the interpreter on, before anything imports triton

DTYPES = {torch.float32: 1e-5, torch.float16: 1e-2}
OPTIONS = {
    "grouped_gemm": {"transposed": st.booleans()},
    "grouped_up": {"gather": st.booleans()},
    "activation_backward": {"activation": st.sampled_from(("swiglu", "geglu", "relu", "gelu", "silu"))},
    "topk_gate_backward": {"score": st.sampled_from(SCORES), "renormalise": st.booleans()},
}
"""Kernel -> options that its inputs may depend on, or not."""
KERNELS = ("activation_backward", "combine", "decode_down", "decode_up", "grouped_gemm", "grouped_up",
           "grouped_weight_gradient", "permute", "topk_gate_backward")  # fmt: skip
SIZES = {
    "tokens": st.integers(0, 9),
    "rows": st.integers(0, 20),
    "num_experts": st.integers(1, 7),
    "top_k": st.integers(1, 7),
    "block_m": st.sampled_from((16, 16, 32)),
    **dict.fromkeys(("d_model", "d_expert", "d_in", "d_out", "d_left", "d_right"), st.integers(1, 40)),
}


@st.composite
def launches(draw):
    """A kernel, its options, and inputs of any size, laid out in any way."""
    name = draw(st.sampled_from(KERNELS))
    module = importlib.import_module(f"moe_lab.kernels.{name}")
    options = {option: draw(values) for option, values in OPTIONS.get(name, {}).items()}
    asked = inspect.signature(module.make_inputs).parameters
    sizes = {size: draw(values) for size, values in SIZES.items() if size in asked}
    if "top_k" in sizes:
        sizes["top_k"] = min(sizes["top_k"], sizes["num_experts"])
    own = {option: value for option, value in options.items() if option in asked}
    dtype, seed = draw(st.sampled_from(tuple(DTYPES))), draw(st.integers(0, 999))
    inputs = module.make_inputs(**sizes, **own, dtype=dtype, device="cpu", seed=seed)
    inputs = [
        lay_out(value, draw(st.sampled_from(LAYOUTS[:-1]))) if torch.is_tensor(value) and value.dim() > 1 else value
        for value in inputs
    ]
    return name, inputs, options, dtype


def as_tensors(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def rows_in_use(name, inputs):
    """How many rows of a sorted result are written: those of tiles in use; None where all are."""
    if name == "grouped_gemm":
        return int(inputs[3]) * inputs[4]
    tables = [value for value in inputs if isinstance(value, RowTable)]
    return int(tables[0].num_tiles) * inputs[-1] if tables else None


@fuzzed("kernels", cases=500, few=8, launch=launches())
def test_kernels_are_their_references(launch):
    name, inputs, options, dtype = launch
    module = importlib.import_module(f"moe_lab.kernels.{name}")
    got = attempt("kernels", lambda: getattr(module, name)(*inputs, **options), must="answer")
    wide = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in inputs]
    want = getattr(module, f"{name}_reference")(*wide, **options)
    used = rows_in_use(name, inputs)
    for number, (ours, exactly) in enumerate(zip(as_tensors(got), as_tensors(want), strict=True)):
        assert ours.shape == exactly.shape
        per_row = used is not None and not (name == "activation_backward" and number == 1)
        ours, exactly = (value[: used if per_row else None].double() for value in (ours, exactly))
        assert float((ours - exactly).norm()) <= DTYPES[dtype] * float(exactly.norm()) + 1e-12


@fuzzed("kernels", cases=250, few=2, case=layers(dtypes=tuple(DTYPES), most_tokens=9), save=st.sampled_from(SAVES))
def test_experts_on_the_kernels_are_the_loop_in_float64(case, save):
    check_case(
        case, lambda *a: expert_mlp(*a, activation=case[0]["activation"], backend="triton", save=save), "kernels"
    )


@st.composite
def assignments(draw):
    """Experts (tokens, slots), some of which are none, in either dtype, with strides; blocks that divide nothing."""
    num_experts = draw(st.one_of(st.integers(1, 7), st.sampled_from((1, 7, 33))))
    tokens, slots, seed = draw(st.integers(0, 14)), draw(st.integers(0, 3)), draw(st.integers(0, 9999))
    generator = torch.Generator().manual_seed(seed)
    experts = torch.randint(-1, num_experts, (tokens, slots), generator=generator)
    strange = draw(st.sampled_from((-1, -1, num_experts, -7, 2**31 - 1, -(2**31))))
    experts = experts.masked_fill(torch.rand(experts.shape, generator=generator) < 0.2, strange)
    experts = experts.to(draw(st.sampled_from((torch.int64, torch.int32))))
    experts = experts.T.contiguous().T if draw(st.booleans()) else experts
    return experts, num_experts, draw(st.one_of(st.sampled_from((16, 64)), st.integers(1, 20)))


@fuzzed("kernels", cases=200, few=3, assigned=assignments())
def test_tables_are_counted_exactly(assigned):
    experts, num_experts, block = assigned
    table = attempt("kernels", lambda: sort_tokens(*assigned), must="answer")
    for field, ours, want in zip(table._fields, table, sort_tokens_reference(*assigned), strict=True):
        assert torch.equal(ours, want), field
    load = [sum(expert == e for row in experts.tolist() for expert in row) for e in range(num_experts)]
    assert table.load.tolist() == load and int(table.num_tiles) == sum(-(-count // block) for count in load)
    if num_experts > 9:
        return  # the serial ones have a program an expert, and take seconds
    serial, want = align_serial(*assigned), align_serial_reference(*assigned)
    assert all(torch.equal(ours, exactly) for ours, exactly in zip(serial, want, strict=True))
    ids, blocks, rows = align_scan(*assigned)
    assert torch.equal(blocks, want[1]) and torch.equal(rows, want[2])
    in_blocks = (table.view(-1, block).sort(dim=1).values for table in (ids, want[0]))
    owner = want[1].long()
    ours, exactly = in_blocks
    for expert in range(num_experts + 1):  # within an expert any order will do
        mine = owner == expert
        assert torch.equal(ours[mine].flatten().sort().values, exactly[mine].flatten().sort().values)


@st.composite
def gates(draw):
    num_experts = draw(st.one_of(st.integers(1, 12), st.sampled_from((33, 64))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    logits = 3 * torch.randn(draw(st.integers(0, 9)), num_experts, generator=generator)
    logits = logits.round() if draw(st.booleans()) else logits
    options = dict(
        score=draw(st.sampled_from(SCORES)),
        renormalise=draw(st.booleans()),
        scale=draw(st.sampled_from((1.0, 2.5, -1, 0))),
        bias=draw(st.sampled_from((None, torch.randn(num_experts, generator=generator)))),
    )
    logits = lay_out(logits.to(draw(st.sampled_from(tuple(DTYPES)))), draw(st.sampled_from(LAYOUTS)))
    return logits, draw(st.one_of(st.integers(1, num_experts), st.just(num_experts))), options


@fuzzed("kernels", cases=250, few=3, case=gates(), differs=st.booleans())
def test_the_gate_is_the_router_in_one_launch(case, differs):
    logits, top_k, options = case
    ours, theirs = (logits.clone().requires_grad_(differs) for _ in range(2))
    got = attempt("kernels", lambda: gate(ours, top_k, **options), must="answer")
    want = route(theirs, top_k, **options)
    if options["bias"] is None:
        assert torch.equal(got.experts, want.experts)
    else:  # a sum rounds here and there: what is chosen must rank as high
        ranking = {"softmax": logits.float().softmax(1), "sigmoid": logits.float().sigmoid()}.get(
            options["score"], logits
        )
        ranking = ranking + options["bias"]
        chosen = [ranking.gather(1, routing.experts) for routing in (got, want)]
        torch.testing.assert_close(*chosen, rtol=1e-5, atol=1e-5)
        if not torch.equal(got.experts, want.experts):
            return
    torch.testing.assert_close(got.weights, want.weights, rtol=1e-4, atol=1e-6)
    if differs and got.weights.numel():
        dweights = torch.randn(got.weights.shape, generator=torch.Generator().manual_seed(0))
        gradients = [torch.autograd.grad(r.weights, leaf, dweights)[0] for r, leaf in ((got, ours), (want, theirs))]
        torch.testing.assert_close(*gradients, rtol=2e-2 if logits.dtype == torch.float16 else 1e-3, atol=1e-3)


@fuzzed("kernels", cases=100, few=6, order=st.sampled_from(sorted(ORDERS)),
        tiles=st.tuples(*[st.integers(1, 9)] * 2), used=st.integers(0, 10), groups=st.tuples(*[st.integers(1,
        11)] * 2))  # fmt: skip
def test_orders_visit_what_their_references_visit(order, tiles, used, groups):
    num_tiles = torch.tensor([min(used, tiles[0])], dtype=torch.int32)  # more would be written behind the tensors
    got = attempt("kernels", lambda: tile_order(order, *tiles, num_tiles, *groups), must="answer")
    want = tile_order_reference(order, *tiles, num_tiles, *groups)
    assert torch.equal(got.count, want.count) and torch.equal(got.program, want.program)


WELCOME = {
    **dict.fromkeys((("activation_backward", 2), ("grouped_up", 2), ("decode_up", 3)), (2, 3, 4)),  # made float32
    **dict.fromkeys((("combine", 0), ("grouped_gemm", 1), ("decode_up", 1), ("decode_down", 1)), (9, 10)),
}
"""(kernel, argument) -> `wrong_versions` that it takes, or cannot tell: how long the tables let it be."""


def wrong_versions(value):
    """What cannot stand where a tensor of values is wanted."""
    return (
        *(
            None,
            value.tolist(),
            value.double(),
            value.to(torch.int8),
            value.bfloat16(),
            value.to("meta"),
            value.to_sparse(),
        ),
        *(value[None], value.flatten(), torch.cat([value, value[-1:]]), value[:-1], value.new_zeros(())),
    )


@st.composite
def wrong_launches(draw):
    """A kernel whose inputs are right but for one tensor of values."""
    name = draw(st.sampled_from(KERNELS))
    module = importlib.import_module(f"moe_lab.kernels.{name}")
    sizes = {"tokens": 5, "rows": 5, "num_experts": 3, "top_k": 2, "block_m": 16, "d_model": 6, "d_expert": 4}
    sizes |= {"d_in": 6, "d_out": 4, "d_left": 6, "d_right": 4}
    asked = inspect.signature(module.make_inputs).parameters
    inputs = module.make_inputs(
        **{size: value for size, value in sizes.items() if size in asked}, dtype=torch.float32, device="cpu"
    )
    tensors = [n for n, value in enumerate(inputs) if torch.is_tensor(value) and value.is_floating_point()]
    place = draw(st.sampled_from(tensors))
    number = draw(st.sampled_from([number for number in range(12) if number not in WELCOME.get((name, place), ())]))
    return name, inputs, place, number


@fuzzed("kernels", cases=250, few=30, wrong=wrong_launches())
def test_wrong_tensors_are_refused(wrong):
    name, inputs, place, number = wrong
    changed = [*inputs]
    changed[place] = wrong_versions(inputs[place])[number]
    launch = getattr(importlib.import_module(f"moe_lab.kernels.{name}"), name)
    attempt("kernels", lambda: launch(*changed), must="refuse")
