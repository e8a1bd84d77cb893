"""torch.compile of a layer into one graph, on the CPU: outputs, gradients and routing are those of the layer itself.

The backend is "aot_eager", which traces forward and backward as the default one does, and needs no C++ compiler.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from moe_lab import METHODS, BiasBalancer, MoE, Routing, losses
from moe_lab.inputs import make_router_options
from moe_lab.types import may_read

# Methods whose selection is an operator that the graph calls; all others are in the graph, operation by operation.
OPAQUE = {
    "sinkhorn": "sinkhorn_prices",
    "base": "assign_evenly",
    "balanced": "assign_evenly",
    "balanced_causal": "assign_in_order",
}


@pytest.fixture(autouse=True)
def as_outside_of_the_tests(unchecked_shapes, monkeypatch):
    """No shape checks, which Dynamo would trace; those of a property it cannot trace even where they are off."""
    for name in ("tokens", "slots", "asked", "load"):
        monkeypatch.setattr(Routing, name, property(inspect.unwrap(getattr(Routing, name).fget)))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compiled:
    """A function as one graph, or an error; and what was compiled for it."""

    def __init__(self, function):
        self.backend = CompileCounterWithBackend("aot_eager")
        self.call = torch.compile(function, fullgraph=True, backend=self.backend)

    @property
    def operators(self):
        return {str(node.target) for graph in self.backend.graphs for node in graph.graph.nodes}


def layer_of(method="top_k", **options):
    torch.manual_seed(0)
    top_k = {"switch": 1, "base": 1}.get(method, 2)
    return MoE(**{**dict(d_model=8, d_expert=6, num_experts=4, top_k=top_k, method=method), **options})


def run(call, layer, tokens, dynamic=False, **options):
    """Output, routing and all gradients of one call."""
    torch.manual_seed(tokens)
    x, dy = torch.randn(tokens, 8, requires_grad=True), torch.randn(tokens, 8)
    if dynamic:
        for tensor in (x, *options.values()):
            torch._dynamo.mark_dynamic(tensor, 0)  # an error if the graph holds for one number of tokens alone
    y = call(x, **options)
    leaves = [x, *layer.parameters()]
    gradients = torch.autograd.grad(y, leaves, dy)
    return y.detach(), layer.routing, layer.logits.detach(), *gradients


def check_equal(compiled, layer, tokens, **options):
    y, routing, *others = run(compiled.call, layer, tokens, **options)
    want, eager, *others_want = run(layer, layer, tokens, **options)
    assert type(routing) is Routing and routing is not eager
    assert (routing.num_experts, routing.top_k, routing.tokens) == (eager.num_experts, eager.top_k, tokens)
    assert torch.equal(routing.experts, eager.experts)
    for ours, theirs in zip((y, routing.weights, *others), (want, eager.weights, *others_want), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one_graph_for_all_sizes(method):
    layer = layer_of(method, **{k: v for k, v in options_of(method, 1).items() if k != "token_ids"})
    compiled = Compiled(layer)
    for tokens in (10, 33):
        calls = {"token_ids": torch.arange(tokens) % 7} if method == "hash" else {}
        check_equal(compiled, layer, tokens, dynamic=True, **calls)
    assert compiled.backend.frame_count == 1, "another size was compiled for by itself"
    opaque = {name.removeprefix("moe_lab.") for name in compiled.operators if name.startswith("moe_lab.")}
    assert opaque == {"grouped_mlp", *([OPAQUE[method]] if method in OPAQUE else [])}


def options_of(method, seed):
    """Options with which a method runs, without a generator: see `test_a_generator_is_refused`."""
    options = make_router_options(method, 10, 4, 2, seed=seed)
    return {name: value for name, value in options.items() if name != "generator"}


@pytest.mark.parametrize("priority", ["order", "random"])
def test_capacity_that_drops(priority):
    layer = layer_of("capacity_top_k", overflow="drop", priority=priority)
    check_equal(Compiled(layer), layer, 40)


def test_sizes_are_compiled_for_once_and_then_for_all():
    """The default: the second size makes the number of tokens a variable; 0 and 1 are compiled for by themselves."""
    layer = layer_of(num_shared=1, renormalise=True)
    compiled = Compiled(layer)
    for tokens in (10, 17, 3, 40, 2, 65, 128, 31, 55, 12):
        check_equal(compiled, layer, tokens)
    assert compiled.backend.frame_count == 2
    for tokens in (1, 0):
        check_equal(compiled, layer, tokens)
    assert compiled.backend.frame_count <= 4


def test_batch_dimensions():
    layer = layer_of()
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(Compiled(layer).call(x), layer(x))
    assert layer.routing.tokens == 10


def test_training_is_the_same_training():
    """Loss on the routing inside of the graph, a balancer that learns from the layer's last call outside of it."""
    trained = []
    for compile in (False, True):
        layer = layer_of("sigmoid_bias", num_shared=1, balancer=BiasBalancer(4, rate=0.1))
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)

        def loss_of(x, layer=layer):
            return F.mse_loss(layer(x), x) + 0.01 * losses.z_loss(layer.logits)

        call = Compiled(loss_of).call if compile else loss_of
        draw = torch.Generator().manual_seed(1)
        for _ in range(4):
            loss = call(torch.randn(24, 8, generator=draw))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            layer.update_balancer()
        trained.append([loss.detach(), *layer.state_dict().values()])
    assert bool((layer.balancer.bias != 0).any())
    for eager, compiled in zip(*trained, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_the_kernels_are_one_operator_too():
    layer = layer_of(backend="triton", renormalise=True)
    compiled = Compiled(layer)
    check_equal(compiled, layer, 5)
    assert {name for name in compiled.operators if name.startswith("moe_lab.")} == {"moe_lab.triton_mlp"}


def test_evaluation_and_half_precision():
    layer = layer_of("balanced", eval_method="top_k", num_shared=1).eval().bfloat16()
    x = torch.randn(12, 8, dtype=torch.bfloat16)
    y = Compiled(layer).call(x)
    assert y.dtype == torch.bfloat16 and layer.logits.dtype == torch.float32
    torch.testing.assert_close(y, layer(x))


def test_autocast():
    layer, x = layer_of(num_shared=1), torch.randn(12, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = Compiled(layer).call(x)
        logits = layer.logits
        want = layer(x)
    assert y.dtype == torch.bfloat16 and logits.dtype == torch.float32
    torch.testing.assert_close(y, want)
    assert torch.equal(logits, layer.logits)


def test_frozen_experts_get_no_gradient():
    layer = layer_of()
    layer.w_gate_up.requires_grad_(False)
    x = torch.randn(9, 8)
    Compiled(layer).call(x).sum().backward()
    got = layer.w_down.grad
    layer.zero_grad()
    layer(x).sum().backward()
    torch.testing.assert_close(got, layer.w_down.grad)
    assert layer.w_gate_up.grad is None


def test_a_graph_looks_at_no_values():
    """What is refused for its values is refused in eager mode alone; types and shapes are refused in both."""
    layer, x = layer_of(), torch.full((3, 8), float("nan"))
    compiled = Compiled(layer)
    with pytest.raises(ValueError, match="logits must be finite"):
        layer(x)
    assert bool(compiled.call(x).isnan().all())
    with pytest.raises(Exception, match=r"x must be \(\.\.\., d_model=8\), got \(3, "):
        compiled.call(torch.zeros(3, 5))
    assert may_read(x) and not may_read(x.to("meta"))
    assert Compiled(lambda tensor: tensor - 1 if may_read(tensor) else tensor + 1).call(torch.zeros(1)) == 1


def test_a_generator_is_refused():
    """Dynamo knows no generators: seed torch itself, or leave fullgraph out."""
    layer, x = layer_of("random"), torch.randn(5, 8)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Generator"):
        Compiled(layer).call(x, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    with torch.no_grad():
        y = torch.compile(layer, backend="aot_eager")(x, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(y, layer(x, generator=torch.Generator().manual_seed(0)))


def test_no_second_derivative_says_so():
    layer, x = layer_of(), torch.randn(5, 8, requires_grad=True)
    y = Compiled(layer).call(x)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        dx.sum().backward()
