"""expert_mlp, capacity_mlp and MoE on any input: outputs and gradients against the loop in float64, and refusals."""

import math

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from moe_lab import METHODS, MoE, Routing, expert_mlp
from moe_lab.activations import ACTIVATIONS, activate
from moe_lab.dispatch import DISPATCHES, capacity_mlp
from moe_lab.experts import SAVES
from moe_lab.inputs import SPREADS, make_layer_inputs, make_router_options

from .cases import attempt, fuzzed, one_wrong
from .tensors import LAYOUTS, lay_out

ALLOWED = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
NAMES = ("x", "weights", "w_gate_up", "w_down")


@st.composite
def layers(draw, dtypes=tuple(ALLOWED), most_tokens=17, most_width=9):
    """Inputs of `expert_mlp` at and off the edges, in any layout, each of which may want a gradient or not."""
    num_experts = draw(st.integers(1, 7))
    sizes = dict(
        tokens=draw(st.integers(0, most_tokens)),
        d_model=draw(st.integers(1, most_width)),
        d_expert=draw(st.integers(1, most_width)),
        num_experts=num_experts,
        top_k=draw(st.one_of(st.integers(1, num_experts), st.just(num_experts))),
        spread=draw(st.sampled_from(SPREADS)),
        empty_slots=draw(st.sampled_from((0.0, 0.0, 0.3, 1.0))),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 10**6)),
    )
    wanted = [draw(st.booleans()) for _ in NAMES]
    return sizes, draw(st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4)), wanted


def leaves_of(case):
    """The four tensors of a case as leaves, its routing's experts, and a gradient from above."""
    sizes, layouts, wanted = case
    inputs = make_layer_inputs(**sizes)
    tensors = inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down
    laid = [lay_out(tensor, how) for tensor, how in zip(tensors, layouts, strict=True)]
    # an expanded row of weights would put one into an empty slot, which no router does
    laid[1] = laid[1].masked_fill(inputs.routing.experts < 0, 0.0)
    return [tensor.requires_grad_(want) for tensor, want in zip(laid, wanted, strict=True)], inputs


def run(function, leaves, experts, num_experts, dy):
    """The answer, and the gradients of the leaves that want one."""
    x, weights, w_gate_up, w_down = leaves
    y = function(x, Routing.trusted(experts, weights, num_experts), w_gate_up, w_down)
    wanting = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanting:
        assert not y.requires_grad
        return y, []
    return y, torch.autograd.grad(y, wanting, dy.to(y.dtype), allow_unused=True, materialize_grads=True)


def check_case(case, function, subject="layers"):
    """Hold a function of `expert_mlp`'s arguments against `expert_mlp`'s loop in float64."""
    leaves, inputs = leaves_of(case)
    activation, allowed = case[0]["activation"], ALLOWED[case[0]["dtype"]]
    routed = inputs.routing.experts, inputs.routing.num_experts, inputs.dy
    got = attempt(subject, lambda: run(function, leaves, *routed), must="answer")
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    want = run(lambda *a: expert_mlp(*a, activation=activation, backend="loop"), exact, *routed)
    assert got[0].dtype == case[0]["dtype"] and len(got[1]) == len(want[1])
    for ours, exactly in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert ours.shape == exactly.shape
        off, scale = float((ours.detach().double() - exactly.detach()).norm()), float(exactly.detach().norm())
        # answers are sums of terms of order 1, which round before they cancel
        assert off <= allowed * (scale + 0.1 * ours.numel() ** 0.5), f"off by {off:.2e} of {scale:.2e}"


@fuzzed("layers", cases=1300, few=40, case=layers(), backend=st.sampled_from(("loop", "grouped", "grouped", "auto")))
def test_experts_are_the_loop_in_float64(case, backend):
    check_case(case, lambda *a: expert_mlp(*a, activation=case[0]["activation"], backend=backend))


@fuzzed("layers", cases=300, few=12, case=layers(), dispatch=st.sampled_from(DISPATCHES), room=st.integers(0, 2))
def test_padded_blocks_are_the_loop_in_float64(case, dispatch, room):
    def padded(x, routing, w_gate_up, w_down):
        capacity, options = int(routing.load.max()) + room, dict(activation=case[0]["activation"], dispatch=dispatch)
        return capacity_mlp(x, routing, w_gate_up, w_down, capacity, **options)

    check_case(case, padded)


@st.composite
def whole_layers(draw):
    """A layer with any method, shared experts or none, and tokens in any batch dimensions, empty ones too."""
    method = draw(st.sampled_from(sorted(METHODS)))
    pinned = METHODS[method].only_top_k
    num_experts = draw(st.integers(pinned or 1, 6))
    batch = draw(st.lists(st.integers(0, 4), max_size=3))
    return dict(
        method=method,
        num_experts=num_experts,
        top_k=pinned or draw(st.integers(1, num_experts)),
        d_model=draw(st.integers(1, 6)),
        d_expert=draw(st.integers(1, 6)),
        num_shared=draw(st.integers(0, 2)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        dtype=draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16))),
        shape=batch,
        seed=draw(st.integers(0, 10**6)),
        training=draw(st.booleans()),
    )


@fuzzed("layers", cases=400, few=20, case=whole_layers())
def test_a_layer_is_its_routing_and_its_experts(case):
    case = dict(case)
    shape, seed, dtype, training = (case.pop(name) for name in ("shape", "seed", "dtype", "training"))
    torch.manual_seed(seed)
    tokens = math.prod(shape)
    options = make_router_options(case["method"], tokens, case["num_experts"], case["top_k"], seed=seed % 100)
    calls = {name: options.pop(name) for name in ("generator", "token_ids") if name in options}
    layer = MoE(**case, mix_shared=bool(case["num_shared"]) and seed % 2 == 0, **options).to(dtype).train(training)
    x = torch.randn(*shape, case["d_model"], dtype=dtype)
    y = attempt("layers", lambda: layer(x, **calls), must="answer")
    assert y.shape == x.shape and y.dtype == dtype and layer.routing.tokens == tokens
    want = by_hand(layer, x.reshape(tokens, x.shape[-1]).double()).reshape(x.shape)
    torch.testing.assert_close(y.detach().double(), want, rtol=ALLOWED[dtype] * 10, atol=ALLOWED[dtype] * 10)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@torch.no_grad()
def by_hand(layer, rows):
    """What a layer's last routing makes of its tokens, in float64."""
    wide = {name: parameter.double() for name, parameter in layer.named_parameters()}
    routing = Routing(layer.routing.experts, layer.routing.weights.double(), layer.num_experts)
    options = dict(activation=layer.activation, backend="loop")
    y = expert_mlp(rows, routing, wide["w_gate_up"], wide["w_down"], **options)
    if layer.num_shared:
        shared = F.linear(activate(F.linear(rows, wide["shared_gate_up"]), layer.activation), wide["shared_down"])
        if layer.mix_shared:
            own, others = F.linear(rows, wide["mixture"]).softmax(dim=-1).unsqueeze(-1).unbind(-2)
            y, shared = own * y, others * shared
        y = y + shared
    return y


ROUTING = Routing(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), 2)
RIGHT = dict(x=torch.zeros(3, 4), routing=ROUTING, w_gate_up=torch.zeros(2, 6, 4), w_down=torch.zeros(2, 4, 3))
WRONG = {
    "x": (None, [[0.0]], torch.zeros(3, 5), torch.zeros(2, 4), torch.zeros(12), torch.zeros(3, 4).double(),
          torch.zeros(3, 4).long(),
          torch.zeros(3, 4, device="meta"), torch.zeros(1, 3, 4), torch.tensor(1.0), torch.zeros(0, 4),
          torch.zeros(3, 0),
          torch.zeros(3, 4).to_sparse(), torch.zeros(3, 4).cfloat(), torch.zeros(3, 4).to(torch.float8_e4m3fn)),
    "routing": (None, [[0]], torch.zeros(3, 1).long(), Routing(torch.zeros(3, 1).long(), torch.ones(3, 1), 3),
                Routing(torch.zeros(2, 1).long(), torch.ones(2, 1), 2)),
    "w_gate_up": (None, torch.zeros(2, 3, 4), torch.zeros(2, 6, 5), torch.zeros(3, 6, 4), torch.zeros(6, 4),
                  torch.zeros(2, 6, 4).half(),
                  torch.zeros(2, 6, 4).int(), torch.zeros(0, 6, 4), torch.zeros(2, 6, 4, device="meta"),
                  torch.zeros(2, 6, 4).to_sparse()),
    "w_down": (None, torch.zeros(2, 3, 4), torch.zeros(5, 4, 3), torch.zeros(4, 3), torch.zeros(2, 4, 3).double(),
               "w_down",
               torch.zeros(2, 4, 3).to_sparse()),
    "activation": ("tanh", "", None, 3, [], {}, ("swiglu",)),
    "backend": ("fast", "", None, 3, [], {}),
    "save": ("most", "", None, 3, [], {}),
}  # fmt: skip
"""Argument of `expert_mlp` -> values that it cannot have beside the others of `RIGHT`."""


@st.composite
def wrong_calls(draw):
    name = draw(st.sampled_from(sorted(WRONG)))
    return (
        name,
        draw(st.integers(0, len(WRONG[name]) - 1)),
        draw(st.sampled_from(("loop", "grouped", "triton", "auto"))),
    )


@fuzzed("layers", cases=300, few=60, wrong=wrong_calls())
def test_wrong_arguments_are_refused(wrong):
    name, number, backend = wrong
    call = dict(RIGHT, backend=backend, activation="swiglu", save=SAVES[0]) | {name: WRONG[name][number]}
    attempt("layers", lambda: expert_mlp(**call), must="refuse", refuses=name)


SIZES = (0, -1, 1.5, None, "8", True, math.nan, 10**5000, [], 2**70)
WRONG_SIZES = dict.fromkeys(("d_model", "d_expert", "num_experts", "top_k"), SIZES) | {
    "num_shared": tuple(size for size in SIZES if size != 0),
    "method": ("best", None, [], 3),
    "eval_method": ("best", [], 3),
    "activation": ("tanh", None, []),
    "backend": ("fast", None, []),
    "save": ("most", None, []),
    "bias": (torch.zeros(3), [0.0] * 4, torch.full((4,), math.nan), 0.0),
    "scale": (None, "1", math.nan, []),
    "colour": (1,),
    "mix_shared": (True,),
    "balancer": ("sign", torch.nn.Identity(), 3),
}


@fuzzed("layers", cases=200, few=40, wrong=one_wrong(WRONG_SIZES))
def test_layers_that_cannot_be_are_refused(wrong):
    name, number = wrong
    call = dict(d_model=6, d_expert=3, num_experts=4, top_k=2) | {name: WRONG_SIZES[name][number]}
    says = "method" if name == "eval_method" else name
    attempt("layers", lambda: MoE(**call), must="refuse", refuses=says)
