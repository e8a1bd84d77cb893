"""What `ExpertParallel` refuses, and that it does so before a rank speaks to another."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from moe_lab import MoE
from moe_lab.parallel.launch import run_ranks
from moe_lab.parallel.style import ExpertParallel, expert_parameters
from moe_lab.parallel.traffic import watch_traffic


class Silence:
    """Fails where anything is sent, by whatever collective."""

    def __enter__(self):
        self.real = {name: getattr(dist, name) for name in ("broadcast", "scatter", "all_to_all_single", "all_reduce")}
        for name in self.real:
            setattr(dist, name, self.refuse)

    def __exit__(self, *_):
        for name, function in self.real.items():
            setattr(dist, name, function)

    def refuse(self, *_, **__):
        raise AssertionError("a rank has spoken")


def refusals():
    """Each refusal's words on this rank."""
    flat = init_device_mesh("cpu", (2,), mesh_dim_names=("expert",))
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replica", "expert"))
    spread = parallelize_module(MoE(4, 4, 2, 1), flat, ExpertParallel())
    tries = {
        "not an MoE": lambda: parallelize_module(torch.nn.Linear(2, 2), flat, ExpertParallel()),
        "does not divide": lambda: parallelize_module(MoE(4, 4, 3, 1), flat, ExpertParallel()),
        "twice": lambda: parallelize_module(spread, flat, ExpertParallel()),
        "two dimensions": lambda: parallelize_module(MoE(4, 4, 2, 1), square, ExpertParallel()),
        "no such dimension": lambda: parallelize_module(MoE(4, 4, 2, 1), square["experts"], ExpertParallel()),
        "replicas": lambda: ExpertParallel(replicas=square),
    }
    words = {}
    with Silence():
        for name, attempt in tries.items():
            try:
                attempt()
            except Exception as error:
                words[name] = f"{type(error).__name__}: {error}"
    return words


def test_what_cannot_be_spread_is_refused_before_any_communication():
    for words in run_ranks(refusals, 2):
        assert words["not an MoE"] == "TypeError: ExpertParallel spreads the experts of an MoE, got Linear"
        assert words["does not divide"] == "ValueError: num_experts=3 must be divisible by the 2 ranks of the mesh"
        assert words["twice"] == "ValueError: the experts of this MoE are spread over 2 ranks already"
        assert words["two dimensions"].startswith(
            "ValueError: the mesh must have one dimension, got replica: 1 x expert"
        )
        assert words["no such dimension"].startswith("KeyError: ") and "experts" in words["no such dimension"]
        assert words["replicas"].startswith("ValueError: replicas must be a mesh of one dimension")


def wrong_world_size():
    try:
        init_device_mesh("cpu", (3,))
    except Exception as error:
        return str(error)


def test_a_mesh_of_another_size_than_the_world_is_refused():
    for words in run_ranks(wrong_world_size, 2):
        assert "3" in words and "2" in words


def test_refuses_an_unknown_loss():
    with pytest.raises(ValueError, match="loss must be mean or sum, got 'max'"):
        ExpertParallel(loss="max")


def spread_model():
    """A layer with shared experts, spread, saved and counted."""
    torch.manual_seed(dist.get_rank())
    layer = MoE(8, 6, 4, 2, num_shared=1)
    layer = parallelize_module(layer, init_device_mesh("cpu", (2,)), ExpertParallel())
    x = torch.ones(3, 8)
    with watch_traffic() as sent, torch.no_grad():
        layer(x)
    sizes = {name: tuple(p.to_local().shape) for name, p in expert_parameters(layer).items()}
    return sizes, layer.router.detach(), layer.w_down.full_tensor().detach(), sent, repr(layer)


def test_each_rank_holds_its_block_and_the_rest_whole():
    first, second = run_ranks(spread_model, 2)
    assert first[0] == second[0] == {"w_gate_up": (2, 12, 8), "w_down": (2, 8, 6)}
    assert torch.equal(first[1], second[1]), "rank 1 was drawn from another seed and must have taken rank 0's router"
    torch.manual_seed(0)
    assert torch.equal(first[2], MoE(8, 6, 4, 2, num_shared=1).w_down)
    assert int(first[3].sum()) > 0
    assert "num_experts=4" in first[4]
