"""Experts on 1, 2 and 4 ranks against one process: outputs and every gradient, alone and beside data parallelism."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from moe_lab.parallel.launch import run_ranks
from moe_lab.parallel.style import ExpertParallel, data_parallel

from .cases import CASES, make_case, share_of


def run_layer(layer, x, upstream):
    y = layer(x)
    (y * upstream).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def on_this_rank(names, device="cpu"):
    """Each case's results on this rank, gradients of spread experts put together again."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh, results = init_device_mesh(device, (ranks,)), {}
    for name in names:
        layer, x, upstream = (part.to(device) for part in make_case(name))
        if rank:
            torch.nn.init.zeros_(layer.router)  # rank 0's weights are those that count
        layer = parallelize_module(layer, mesh, ExpertParallel(loss="sum"))
        here = share_of(rank, ranks, CASES[name][1])
        mine = x.detach()[here].requires_grad_()
        got = run_layer(layer, mine, upstream[here])
        results[name] = {key: (v.full_tensor() if hasattr(v, "full_tensor") else v).cpu() for key, v in got.items()}
    return results


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_outputs_and_gradients_are_those_of_one_process(ranks, agree):
    by_rank = run_ranks(on_this_rank, ranks, list(CASES))
    for name in CASES:
        want = run_layer(*make_case(name))
        got = [results[name] for results in by_rank]
        for key, value in want.items():
            if key in ("y", "x"):
                here = torch.cat([result[key] for result in got])
            elif key in ("w_gate_up", "w_down"):
                here = got[0][key]
                assert all(torch.equal(result[key], here) for result in got)
            else:  # what every rank holds whole: data parallelism would add these up
                here = sum(result[key] for result in got)
            agree(f"{name}: {key}", here, value, 1e-5)


@pytest.mark.gpu
def test_one_rank_on_a_gpu_gives_what_a_cpu_does(gpu, agree):
    (results,) = run_ranks(on_this_rank, 1, list(CASES), "cuda")
    for name, got in results.items():
        for key, value in run_layer(*make_case(name)).items():
            agree(f"{name}: {key}", got[key], value, 1e-4)


def replicated_on_this_rank(wrap):
    """Two replicas of experts over two ranks, the rest data parallel over all four: averaged gradients."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "expert"))
    layer, x, upstream = make_case("shared")
    layer = parallelize_module(layer, mesh["expert"], ExpertParallel(replicas=mesh["replica"]))
    model = {"ddp": data_parallel, "fsdp": fully_sharded}[wrap](layer)
    here = share_of(rank, 4, CASES["shared"][1])
    (model(x.detach()[here]) * upstream[here]).sum().backward()
    return {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for name, p in layer.named_parameters()
    }


def fully_sharded(layer):
    from torch.distributed.fsdp import fully_shard

    from moe_lab.parallel.style import expert_parameters

    return fully_shard(layer, ignored_params=set(expert_parameters(layer).values()))


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_gradients_beside_data_parallelism_are_those_of_the_mean(wrap, agree):
    want = run_layer(*make_case("shared"))
    for got in run_ranks(replicated_on_this_rank, 4, wrap):
        for name, gradient in got.items():
            agree(name, gradient, want[name] / 4, 1e-5)
