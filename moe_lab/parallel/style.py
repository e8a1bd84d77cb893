"""`ExpertParallel`: what `parallelize_module` applies to an MoE layer, as to any other module."""

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from moe_lab.layers import MoE
from moe_lab.parallel.exchange import Exchange

EXPERT_WEIGHTS = ("w_gate_up", "w_down")


class ExpertParallel(ParallelStyle):
    """Spread the experts of an `MoE` over the ranks of a mesh: an equal block each, while tokens stay where they are.

    ``parallelize_module(layer, mesh, ExpertParallel())``, or ``{"blocks.*.moe": ExpertParallel()}`` for a model. The
    experts' weights become DTensors, sharded over their first dimension; the router and shared experts stay whole on
    every rank, and start as rank 0 of the mesh has them. A call routes this rank's tokens, carries them to their
    experts and back (`Exchange`). All ranks must call the layer equally often, those without tokens too.

    An expert's gradient is complete on its rank: it has seen the tokens of all ranks. Those of everything else belong
    to this rank's tokens, and data parallelism averages them over the ranks (DDP or FSDP2, which must leave the experts
    alone: `expert_parameters`). With ``loss="mean"`` the whole's loss is the mean of the ranks' losses, as DDP and
    FSDP2 take it, so experts' gradients are divided by their ranks; with "sum" they are not.

    ``replicas`` is the mesh over which the same experts exist again: with ``mesh = init_device_mesh("cpu", (2, 4),
    mesh_dim_names=("replica", "expert"))`` give ``mesh["expert"]`` to parallelize_module and ``mesh["replica"]`` here;
    gradients of the experts are averaged (or summed) over it, too.

    Methods that look at a whole batch ("balanced", "expert_choice", "sinkhorn", "base") see this rank's tokens: loads
    are exact on each rank, and therefore in sum.

    Example (one rank; `moe_lab.parallel.launch.run_ranks` starts more):
        >>> import torch
        >>> store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> layer = MoE(d_model=8, d_expert=16, num_experts=4, top_k=2)
        >>> layer = parallelize_module(layer, init_device_mesh("cpu", (1,)), ExpertParallel())
        >>> layer(torch.randn(5, 8)).shape, layer.w_down.placements
        (torch.Size([5, 8]), (Shard(dim=0),))
        >>> torch.distributed.destroy_process_group()

    Raises, before any rank is spoken to: TypeError for a module that is no `MoE`; ValueError for one whose experts are
    spread already, a mesh of several dimensions, experts that the ranks do not divide, or another ``loss``.
    Source: GShard (arXiv:2006.16668), section 3.2; the form: PyTorch's tensor.parallel, as torchtitan uses it.
    """

    def __init__(self, *, loss: str = "mean", replicas: DeviceMesh | None = None):
        super().__init__()
        if loss not in ("mean", "sum"):
            raise ValueError(f"loss must be mean or sum, got {loss!r}")
        if replicas is not None and replicas.ndim != 1:
            raise ValueError(f"replicas must be a mesh of one dimension, got {_describe(replicas)}")
        self.loss, self.replicas = loss, replicas

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        check_experts(module, device_mesh)
        for name, parameter in module.named_parameters(recurse=False):
            if name in EXPERT_WEIGHTS:
                whole = parameter.detach()
                parts = distribute_tensor(whole, device_mesh, [Shard(0)], src_data_rank=self.src_data_rank)
                module.register_parameter(name, nn.Parameter(parts, parameter.requires_grad))
            elif self.src_data_rank is not None and not parameter.is_meta:
                dist.broadcast(parameter.data, group_src=self.src_data_rank, group=device_mesh.get_group())
        replicas = self.replicas if self.replicas is not None and self.replicas.size() > 1 else None
        parts = device_mesh.size() * (replicas.size() if replicas is not None else 1)
        module.exchange = Exchange(
            device_mesh.get_group(),
            module.num_experts,
            parts=parts if self.loss == "mean" else 1,
            replicas=replicas.get_group() if replicas is not None else None,
        )
        return module


def check_experts(module: nn.Module, mesh: DeviceMesh) -> None:
    """Refuse what cannot be spread, with names and numbers."""
    if not isinstance(module, MoE):
        raise TypeError(f"ExpertParallel spreads the experts of an MoE, got {type(module).__name__}")
    if module.exchange is not None:
        raise ValueError(f"the experts of this MoE are spread over {module.exchange.ranks} ranks already")
    if mesh.ndim != 1:
        raise ValueError(
            f"the mesh must have one dimension, got {_describe(mesh)}; give one of them, mesh['expert'] say"
        )
    if module.num_experts % mesh.size():
        raise ValueError(f"num_experts={module.num_experts} must be divisible by the {mesh.size()} ranks of the mesh")


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that `ExpertParallel` has spread, by name: what data parallelism must leave alone.

    ``fully_shard(model, ignored_params=set(expert_parameters(model).values()))``, and for DDP `data_parallel`.
    """
    return {
        f"{prefix}.{name}".lstrip("."): getattr(module, name)
        for prefix, module in model.named_modules()
        if isinstance(module, MoE) and module.exchange is not None
        for name in EXPERT_WEIGHTS
    }


def data_parallel(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.parallel.DistributedDataParallel:
    """Wrap a model in DistributedDataParallel that leaves spread experts to `ExpertParallel`."""
    ddp = nn.parallel.DistributedDataParallel
    names = expert_parameters(model)
    # DDP joins the names itself in one place, and a model that is the layer has no name to put before the dot
    ddp._set_params_and_buffers_to_ignore_for_model(model, [*names, *(f".{name}" for name in names)])
    return ddp(model, process_group=group)


def _describe(mesh: DeviceMesh) -> str:
    names = mesh.mesh_dim_names or tuple(range(mesh.ndim))
    return " x ".join(f"{name}: {size}" for name, size in zip(names, mesh.shape, strict=True))
