"""Every implementation behind one interface: right, or a row that says why not; and a verification that sees mistakes.

The packages of the rivals that need a GPU are not installed here, and none of these tests wants them.
"""

import dataclasses
import importlib.metadata

import pytest
import torch

from moe_lab.bench.peers import DIRECTIONS, PEERS, TOLERANCES, Prepared, reference_of, refusal, verify, why_not
from moe_lab.bench.peers.interface import MOST_COPIED_BYTES
from moe_lab.bench.peers.layouts import GATE_UP, INTERLEAVED, UP_GATE
from moe_lab.bench.peers.verification import relative_error
from moe_lab.experts import expert_mlp
from moe_lab.inputs import make_layer_inputs

EVERYWHERE = [name for name, peer in PEERS.items() if "cpu" in peer.devices]
ELSEWHERE = [name for name, peer in PEERS.items() if "cpu" not in peer.devices and not peer.ours]
SIZES = {"tokens": 14, "d_model": 32, "d_expert": 24, "num_experts": 8, "top_k": 3}


def make(**changes):
    return make_layer_inputs(**{**SIZES, **changes})


@pytest.mark.parametrize("spread", ["uniform", "skewed", "one_expert", "half_empty"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_runs_on_a_cpu_is_right_forward_and_backward(name, dtype, spread):
    inputs, peer = make(spread=spread, dtype=dtype), PEERS[name]
    assert why_not(peer, inputs) is None
    error, tolerance = verify(peer.prepare(inputs), inputs)
    assert error <= tolerance == TOLERANCES[dtype]
    assert error > 0, "nothing was compared"


@pytest.mark.parametrize("save", ["fast", "min"])
def test_our_kernels_are_right_in_the_interpreter(save):
    inputs = make()
    error, tolerance = verify(PEERS[f"moe_lab triton (save={save})"].prepare(inputs), inputs)
    assert 0 < error <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("name", PEERS)
def test_on_a_gpu_each_is_right_or_says_why_not(name, gpu):
    inputs, peer = make(tokens=16, d_model=512, d_expert=256, dtype=torch.bfloat16, device=gpu), PEERS[name]
    directions = DIRECTIONS if peer.backward else ("forward",)
    if why := why_not(peer, inputs, directions):
        assert peer.package not in ("torch", "transformers", "moe-lab"), why
        return
    error, tolerance = verify(peer.prepare(inputs), inputs, directions)
    assert error <= tolerance


def test_the_table_has_a_limit_ours_and_every_rival():
    assert [name for name, peer in PEERS.items() if peer.limit] == ["dense, equal FLOPs"]
    assert sum(peer.ours for peer in PEERS.values()) == 5
    assert all(name == peer.name for name, peer in PEERS.items())
    rivals = {peer.package for peer in PEERS.values() if not (peer.ours or peer.limit)}
    packages = "torch transformers liger-kernel moe-ops tokenspeed-triton-kernels flag-gems scattermoe sonic-moe"
    assert rivals == set(packages.split())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_package_that_is_missing_is_a_row_that_says_so(name, monkeypatch):
    def version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert PEERS[name].version is None
    assert why_not(PEERS[name], make()) == "not installed"


def test_importing_the_table_imports_no_rival(fresh):
    code = (
        "import sys, moe_lab.bench.peers\n"
        "rivals = 'transformers liger_kernel moe_ops triton_kernels flag_gems scattermoe sonicmoe'.split()\n"
        "assert not [name for name in rivals if name in sys.modules]\n"
    )
    fresh.run(code, check=True)


def test_reasons_that_need_no_run(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1.0")
    assert why_not(PEERS["Liger"], make()) == "runs on cuda, not on cpu"
    assert why_not(PEERS["Transformers batched_mm"], make(tokens=17)).startswith("timed up to 16 tokens")
    assert why_not(PEERS["torch grouped_mm"], make(empty_slots=0.5)) == "takes no empty slots"
    assert why_not(PEERS["moe_lab grouped"], make(empty_slots=0.5)) is None
    inputs = make(dtype=torch.float64)
    assert why_not(PEERS["moe_lab grouped"], inputs) == "takes float32, float16, bfloat16, not float64"


@pytest.mark.parametrize("name", ["Transformers eager", "moe_lab loop"])
def test_a_backward_pass_that_would_not_finish_is_refused_alone(name, monkeypatch):
    monkeypatch.setitem(MOST_COPIED_BYTES, "cpu", 8 * 8 * 32 * 3 * 24 * 4)  # 8 experts, each for 8 experts
    few, many = make(), make(num_experts=9)
    assert refusal(PEERS[name], few, DIRECTIONS) is None
    assert refusal(PEERS[name], many, DIRECTIONS) == "its backward pass would write 0 GB of gradients"
    assert refusal(PEERS[name], many) is None
    assert refusal(PEERS["moe_lab grouped"], many, DIRECTIONS) is None
    one_way = dataclasses.replace(PEERS[name], backward=False)
    assert refusal(one_way, few, DIRECTIONS) == "has no backward pass" and why_not(one_way, few, ("forward",)) is None


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("stage", ["prepare", "forward", "backward"])
def test_whatever_a_peer_raises_is_a_reason(stage):
    peer, error = PEERS["moe_lab grouped"], RuntimeError("no kernel image\nis available")

    def prepare(inputs):
        prepared = peer.prepare(inputs)
        if stage == "forward":
            return dataclasses.replace(prepared, forward=failing(error))
        x = prepared.leaves[0].detach()  # has no gradient
        return dataclasses.replace(prepared, leaves=(x,))

    broken = dataclasses.replace(peer, prepare=failing(error) if stage == "prepare" else prepare)
    why = why_not(broken, make())
    assert why.startswith("RuntimeError: ") and len(why) <= 120 and "\n" not in why
    assert (why_not(broken, make(), ("forward",)) is None) == (stage == "backward")


def test_reference_is_autograd_of_the_loop_on_everything_at_once():
    inputs = make(empty_slots=0.3)
    found = reference_of(inputs)
    tensors = (inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down)
    x, weights, w_gate_up, w_down = leaves = [tensor.double().requires_grad_() for tensor in tensors]
    routing = dataclasses.replace(inputs.routing, weights=weights)
    y = expert_mlp(x, routing, w_gate_up, w_down, backend="loop")
    dx, dweights, dw_gate_up, dw_down = torch.autograd.grad(y, leaves, inputs.dy.double())
    held = inputs.routing.experts >= 0
    torch.testing.assert_close(found["y"], y.detach())
    torch.testing.assert_close(found["x"], dx)
    torch.testing.assert_close(found["weights"], dweights.where(held, 0.0))
    for name, gradient in (("w_gate_up", dw_gate_up), ("w_down", dw_down)):
        vectors = torch.linalg.lstsq(gradient.flatten(0, 1), found[name].flatten(0, 1)).solution  # the same for all
        torch.testing.assert_close(gradient @ vectors, found[name], rtol=1e-6, atol=1e-9)
    assert set(reference_of(inputs, ("forward",))) == {"y"}


def spoil(prepared, which):
    """The same implementation with one mistake, in one row of what it gives."""

    def forward():
        y = prepared.forward()
        rows = torch.ones(len(y), 1, dtype=y.dtype)
        rows[-1] = float("nan") if which == "nan" else 0.0
        return y * rows

    def gradients_as_ours(gradients):
        named = {name: gradient.clone() for name, gradient in prepared.gradients_as_ours(gradients).items()}
        if which == "missing":
            return {name: gradient for name, gradient in named.items() if name != "weights"}
        row = named[which][-1, 0] if which.startswith("w_") else named[which][-1]
        row.copy_(row.flip(0))
        return named

    if which in ("y", "nan"):
        return dataclasses.replace(prepared, forward=forward, gradients_as_ours=prepared.gradients_as_ours)
    return dataclasses.replace(prepared, gradients_as_ours=gradients_as_ours)


@pytest.mark.parametrize("which", ["y", "nan", "x", "weights", "w_gate_up", "w_down", "missing"])
def test_one_wrong_row_is_seen(which):
    inputs = make(tokens=2000, dtype=torch.bfloat16)
    right = PEERS["moe_lab grouped"].prepare(inputs)
    reference = reference_of(inputs)
    assert verify(right, inputs, reference=reference)[0] <= TOLERANCES[torch.bfloat16]
    error, tolerance = verify(spoil(right, which), inputs, reference=reference)
    assert error > 2 * tolerance
    if which in ("nan", "missing"):
        assert error == float("inf")


def test_an_answer_of_another_shape_or_to_nothing_is_wrong():
    assert relative_error(torch.ones(3, 2), torch.ones(2, 3)) == float("inf")
    assert relative_error(None, torch.ones(2, 3)) == float("inf")
    assert relative_error(torch.ones(2, 3), torch.zeros(2, 3)) == float("inf")
    assert relative_error(torch.zeros(2, 3), torch.zeros(2, 3)) == 0.0
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


@pytest.mark.parametrize("layout", [GATE_UP, UP_GATE, INTERLEAVED])
def test_layouts_lead_back(layout):
    ours = torch.arange(2 * 6 * 3).view(2, 6, 3)
    assert torch.equal(layout.back(layout.there(ours)), ours)


def test_layouts_are_what_they_say():
    ours = torch.tensor([[[0], [1], [2], [10], [11], [12]]])
    assert UP_GATE.there(ours).flatten().tolist() == [10, 11, 12, 0, 1, 2]
    assert INTERLEAVED.there(ours).flatten().tolist() == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_preparing_leaves_the_inputs_alone(name):
    inputs = make()
    before = [tensor.clone() for tensor in (inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down)]
    prepared = PEERS[name].prepare(inputs)
    assert isinstance(prepared, Prepared) and all(leaf.requires_grad for leaf in prepared.leaves)
    gradients = prepared.forward_backward()
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in prepared.leaves]
    for tensor, copy in zip((inputs.x, inputs.routing.weights, inputs.w_gate_up, inputs.w_down), before, strict=True):
        assert torch.equal(tensor, copy) and not tensor.requires_grad and tensor.grad is None
