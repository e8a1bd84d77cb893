"""The cost model's bytes against those that were handed to the network, to the last one."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from moe_lab import Routing
from moe_lab.parallel.launch import run_ranks
from moe_lab.parallel.style import ExpertParallel
from moe_lab.parallel.traffic import Traffic, count_copies, count_traffic, watch_traffic

from .cases import CASES, D_MODEL, make_case, share_of


def seen_on_this_rank(names, dtype):
    """Bytes to each rank, forward and backward, and what was routed."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh, seen = init_device_mesh("cpu", (ranks,)), {}
    for name in names:
        layer, x, _ = make_case(name)
        layer = parallelize_module(layer.to(dtype), mesh, ExpertParallel())
        mine = x.detach()[share_of(rank, ranks, CASES[name][1])].to(dtype).requires_grad_()
        with watch_traffic() as forward:
            y = layer(mine)
        with watch_traffic() as backward:
            y.sum().backward()
        kept = (layer.routing.experts, layer.routing.weights.detach(), layer.num_experts)
        seen[name] = forward, backward, kept
    return seen


@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_bytes_are_those_of_the_count(ranks, dtype):
    by_rank = run_ranks(seen_on_this_rank, ranks, list(CASES), dtype)
    for name in CASES:
        routings = [Routing(*seen[name][2]) for seen in by_rank]
        traffic = count_traffic(routings, ranks, D_MODEL, dtype)
        assert torch.equal(torch.stack([seen[name][0] for seen in by_rank]), traffic.forward), name
        assert torch.equal(torch.stack([seen[name][1] for seen in by_rank]), traffic.backward), name


def test_a_token_travels_once_to_a_rank_however_many_experts_it_has_there():
    experts = torch.tensor([[0, 1, 2], [0, 3, 5], [-1, -1, -1]])
    routing = Routing(experts, (experts >= 0).float(), 6)
    assert count_copies([routing] * 3, 3).tolist() == [[2, 2, 1]] * 3
    assert count_copies([routing] * 2, 2).tolist() == [[2, 1]] * 2


ROUTING = Routing(torch.tensor([[0], [3]]), torch.ones(2, 1), 4)
OTHER = Routing(torch.tensor([[0, 1]]), torch.ones(1, 2), 4)


@pytest.mark.parametrize(
    ("routings", "ranks", "message"),
    [
        ([ROUTING], 2, "routings must be one a rank, got 1 for ranks=2"),
        ([ROUTING] * 3, 3, "num_experts=4 must be one number that ranks=3 divides"),
        ([ROUTING, OTHER], 2, "routings must have equal slots and dtypes of weights"),
        ([], 0, "ranks must be"),
    ],
)
def test_refuses_routings_that_do_not_fit(routings, ranks, message):
    with pytest.raises(ValueError, match=message):
        count_traffic(routings, ranks, 8, torch.float32)


def test_backward_is_twice_a_token_and_the_weights():
    traffic = Traffic(torch.tensor([[0, 5], [7, 0]]), d_model=16, slots=2, number_bytes=2, weight_bytes=4)
    assert traffic.backward.tolist() == [[0, 5 * 32 + 7 * 40], [7 * 32 + 5 * 40, 0]]
