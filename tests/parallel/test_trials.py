"""What lesson 11 runs on ranks: a spread layer is one process's, bytes are seen, a dead rank is named by the others."""

import pytest
import torch

from moe_lab import MoE, Routing
from moe_lab.parallel.traffic import count_traffic
from moe_lab.parallel.trials import Trial, deal, lose_a_rank, try_alone, try_spread


def make(tokens=7):
    torch.manual_seed(3)
    layer = MoE(8, 6, 4, 2, num_shared=1)
    return layer, *torch.randn(2, tokens, 8).unbind(0)


@pytest.mark.parametrize("tokens", [7, 1])
def test_two_ranks_give_what_one_process_gives_and_their_bytes_are_counted(tokens):
    layer, x, upstream = make(tokens)
    alone, spread = try_alone(layer, x, upstream), try_spread(layer, x, upstream, 2)
    assert set(alone.gradients) == {"tokens", *dict(layer.named_parameters())}
    assert spread.largest_difference(alone) < 1e-5
    assert [len(one.experts) for one in spread.routings] == ([4, 3] if tokens == 7 else [1, 0])
    traffic = count_traffic(spread.routings, 2, 8, torch.float32)
    assert torch.equal(spread.forward, traffic.forward) and torch.equal(spread.backward, traffic.backward)
    assert all(parameter.grad is None for parameter in layer.parameters()), "a trial leaves the layer as it was"


def test_a_difference_in_any_gradient_is_a_difference():
    layer, x, upstream = make()
    alone = try_alone(layer, x, upstream)
    for name in alone.gradients:
        changed = alone.gradients | {name: 1.5 * alone.gradients[name]}
        other = Trial(alone.outputs, changed, alone.routings, alone.forward, alone.backward)
        assert other.largest_difference(alone) == pytest.approx(0.5)
    doubled = Trial(2 * alone.outputs, alone.gradients, alone.routings, alone.forward, alone.backward)
    assert doubled.largest_difference(alone) == pytest.approx(1)
    fewer = Trial(alone.outputs, {}, alone.routings, alone.forward, alone.backward)
    with pytest.raises(ValueError, match="other must have the gradients"):
        alone.largest_difference(fewer)


def test_a_rank_that_dies_is_named_by_the_other():
    said = lose_a_rank(1, ranks=2)
    assert "RankLost: rank 1 of 2 stopped answering, seen from rank 0" in said[0]
    assert said[1] == "rank 1 was killed by SIGKILL"


@pytest.mark.parametrize(("lost", "ranks", "name"), [(2, 2, "lost"), (-1, 2, "lost"), (0, 1, "ranks")])
def test_refuses_a_rank_that_is_not_there(lost, ranks, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        lose_a_rank(lost, ranks)


def test_tokens_are_dealt_out_in_order_and_equally():
    whole = Routing(torch.arange(6)[:, None] % 3, torch.arange(6.0)[:, None], 3)
    parts = deal(whole, 3)
    assert torch.equal(torch.cat([one.experts for one in parts]), whole.experts)
    assert torch.equal(torch.cat([one.weights for one in parts]), whole.weights)
    assert [len(one.experts) for one in parts] == [2, 2, 2]
    with pytest.raises(ValueError, match="ranks must divide the 6 tokens, got 4"):
        deal(whole, 4)
