"""Numbers below 1.2e-38, with a processor that keeps them and with one that makes them 0."""

import pytest
import torch
from moe_lab.kernels.topk_gate import topk_gate

from moe_lab import METHODS, PriceBalancer, Routing, expert_mlp, losses, route
from moe_lab.inputs import make_router_options

from .extremes import by_hand


@pytest.fixture(params=[False, True], ids=["kept", "flushed"])
def flushed(request):
    """Whether denormals are flushed; what the processor did before is put back."""
    before = float(torch.tensor(1e-40) * 1.0) == 0.0
    if not torch.set_flush_denormal(request.param):
        assert not request.param, "this processor cannot flush"
    yield request.param
    torch.set_flush_denormal(before)


def test_equals_are_what_the_processor_calls_equal(flushed):
    """Flushed, these are all 0, and the lower expert goes first; the kernel and the router agree either way."""
    logits = torch.tensor([[1e-40, 2e-40, 0.0, -1e-45], [0.0, -2e-40, 1e-45, 1e-38]])
    want = [[0, 1], [0, 1]] if flushed else [[1, 0], [3, 2]]
    assert route(logits, 2).experts.tolist() == topk_gate(logits, 2)[1].tolist()
    assert route(logits, 2).experts[0].tolist() == want[0]
    if not flushed:
        assert route(logits, 2).experts[1].tolist() == want[1]


@pytest.mark.parametrize("method", METHODS)
def test_denormal_logits_are_routed_as_zeros_or_as_themselves(method, flushed):
    top_k = METHODS[method].only_top_k or 2
    logits = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) * 1e-40
    options = make_router_options(method, 12, 8, top_k) | ({"noise_std": 0.0} if method == "noisy_top_k" else {})
    for score, even in (("softmax", 1 / 8), ("sigmoid", 1 / 2)):
        routing = route(logits, top_k, method, score=score, renormalise=False, **options)
        Routing(routing.experts, routing.weights, 8)  # refuses what is not well formed
        torch.testing.assert_close(routing.weights, torch.where(routing.experts < 0, 0.0, even))


@pytest.mark.parametrize("renormalise", [False, True])
def test_scores_that_are_denormal(renormalise, flushed):
    """The guard of 1e-20 is far above them, so that renormalised they are next to nothing, and never NaN."""
    logits = torch.tensor([[-87.0, -87.5, -88.5], [-46.0, -46.0, -47.0], [-100.0, -101.0, -102.0]])
    found = route(logits, 3, score="sigmoid", renormalise=renormalise).weights
    want = [by_hand(row, 3, score="sigmoid", renormalise=renormalise)[1] for row in logits.tolist()]
    torch.testing.assert_close(
        found.double(), torch.tensor(want).double(), rtol=1e-5, atol=2e-18 if renormalise else 2e-38
    )


def test_losses_and_prices(flushed):
    logits = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) * 1e-40
    routing = route(logits, 2)
    for loss in (
        losses.switch_aux(logits, routing),
        losses.gshard(logits, routing),
        losses.sequence_aux(logits, routing, 2),
    ):
        assert loss.item() == pytest.approx(1.0, rel=1e-6)
    assert losses.z_loss(logits).item() == pytest.approx(4.324077, rel=1e-6)  # log(8)^2
    assert losses.smooth_load(logits, logits, 1.0, 2).item() == pytest.approx(0.0, abs=1e-9)
    small = Routing(torch.tensor([[0], [1]]), torch.tensor([[1e-40], [3e-40]]), 2)
    assert losses.importance(small).item() == pytest.approx(0.0 if flushed else 0.25, rel=1e-4)
    balancer = PriceBalancer(8)
    balancer.update(logits, 2)
    assert bool((balancer.bias.abs() < 2e-38).all())


@pytest.mark.parametrize("backend", ["loop", "grouped", "triton"])
def test_experts(backend, flushed):
    """Flushed or kept, an answer is off by less than the least normal number times the length of its sums."""
    draw = torch.Generator().manual_seed(0)
    x, w_gate_up, w_down = (torch.randn(*s, generator=draw) for s in ((2, 16), (2, 32, 16), (2, 16, 16)))
    plain, small = (Routing(torch.tensor([[0, 1]] * 2), torch.full((2, 2), w), 2) for w in (0.5, 1e-40))
    for case in ((x * 1e-40, plain, w_gate_up, w_down), (x, small, w_gate_up, w_down)):
        rows, routing, *matrices = case
        wide = Routing(routing.experts, routing.weights.double(), 2)
        want = expert_mlp(rows.double(), wide, *(m.double() for m in matrices), backend="loop")
        found = expert_mlp(rows, routing, *matrices, backend=backend)
        torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-36)
