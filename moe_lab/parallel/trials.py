"""What lesson 11 runs on ranks: a spread layer beside one process, and a rank that dies in the middle of its work."""

import os
import signal
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from moe_lab.checks import check_whole
from moe_lab.layers import MoE
from moe_lab.parallel.launch import run_ranks
from moe_lab.parallel.style import ExpertParallel, expert_parameters
from moe_lab.parallel.traffic import watch_traffic
from moe_lab.types import Routing


@dataclass(frozen=True, eq=False)
class Trial:
    """One forward and backward pass: outputs, gradients by name ("tokens" among them), and what each rank routed.

    ``forward`` and ``backward`` are bytes that ranks handed to all-to-alls, int64 (ranks, ranks), seen and not counted;
    one process hands none.
    """

    outputs: Float[Tensor, "tokens d_model"]
    gradients: dict[str, Tensor]
    routings: list[Routing]
    forward: Int64[Tensor, "ranks ranks"]
    backward: Int64[Tensor, "ranks ranks"]

    def largest_difference(self, other: "Trial") -> float:
        """Of outputs and gradients, each over the largest absolute value of its tensor in ``other``."""
        mine = {"outputs": self.outputs, **self.gradients}
        theirs = {"outputs": other.outputs, **other.gradients}
        if mine.keys() != theirs.keys():
            raise ValueError(f"other must have the gradients {sorted(mine)}, got {sorted(theirs)}")
        scales = {name: float(value.abs().max()) or 1.0 for name, value in theirs.items()}
        return max(float((mine[name] - theirs[name]).abs().max()) / scales[name] for name in mine)


def try_alone(layer: MoE, x: Float[Tensor, "tokens d_model"], upstream: Float[Tensor, "tokens d_model"]) -> Trial:
    """The layer in this process: the gradients are those of ``sum(layer(x) * upstream)``.

    Example:
        >>> layer, x = MoE(d_model=4, d_expert=4, num_experts=2, top_k=1), torch.ones(3, 4)
        >>> trial = try_alone(layer, x, x)
        >>> sorted(trial.gradients)
        ['router', 'tokens', 'w_down', 'w_gate_up']
    """
    outputs, gradients = _step(layer, x, upstream)
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    return Trial(outputs, gradients, [layer.routing], nothing, nothing)


def try_spread(
    layer: MoE,
    x: Float[Tensor, "tokens d_model"],
    upstream: Float[Tensor, "tokens d_model"],
    ranks: int,
) -> Trial:
    """The same on ``ranks`` processes, started for it: experts spread over them, and each with its share of the tokens.

    Tokens are dealt out in order, as evenly as they go; the last ranks may have fewer, or none. Each rank sums up its
    loss, gradients of experts come from the exchange, those of everything else are added up over the ranks.

    Example:
        >>> layer, x = MoE(d_model=4, d_expert=4, num_experts=2, top_k=1), torch.ones(3, 4)
        >>> try_spread(layer, x, x, ranks=1).largest_difference(try_alone(layer, x, x)) < 1e-5
        True

    Raises what `ExpertParallel` refuses, as a RuntimeError with the words of the ranks.
    """
    check_whole("ranks", ranks, 1)
    size = max(1, -(-len(x) // ranks))
    parts = [(x[first : first + size], upstream[first : first + size]) for first in range(0, size * ranks, size)]
    said = run_ranks(_step_on_this_rank, ranks, layer, parts)
    outputs, gradients, routings, forward, backward = zip(*said, strict=True)
    whole = gradients[0] | {"tokens": torch.cat([one["tokens"] for one in gradients])}
    kept = [Routing(*one) for one in routings]
    return Trial(torch.cat(outputs), whole, kept, torch.stack(forward), torch.stack(backward))


def lose_a_rank(lost: int, ranks: int, timeout_s: float | int = 60) -> list[str]:
    """Kill rank ``lost`` while all compute a layer again and again; what each rank said in the end, by rank.

    Raises ValueError for a rank that is not there.
    """
    check_whole("ranks", ranks, 2)
    check_whole("lost", lost, 0, ranks - 1)
    try:
        run_ranks(_compute_until_killed, ranks, lost, timeout_s=timeout_s)
    except RuntimeError as error:
        return str(error).splitlines()[:ranks]
    raise AssertionError("no rank noticed that another one was killed")


def deal(routing: Routing, ranks: int) -> list[Routing]:
    """The tokens of one routing dealt out to ranks in order, equally many each: what the cost model takes.

    Example:
        >>> whole = Routing(torch.tensor([[0], [1], [1], [0]]), torch.ones(4, 1), num_experts=2)
        >>> [one.experts.flatten().tolist() for one in deal(whole, ranks=2)]
        [[0, 1], [1, 0]]

    Raises ValueError for ranks that do not divide the tokens.
    """
    if routing.tokens % check_whole("ranks", ranks, 1):
        raise ValueError(f"ranks must divide the {routing.tokens} tokens, got {ranks}")
    parts = zip(routing.experts.chunk(ranks), routing.weights.chunk(ranks), strict=True)
    return [Routing(experts, weights, routing.num_experts) for experts, weights in parts]


def _step(layer: MoE, x: Tensor, upstream: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs, and gradients by name; the layer's own are taken off again."""
    x = x.detach().clone().requires_grad_()
    outputs = layer(x)
    layer.zero_grad()
    (outputs * upstream).sum().backward()
    gradients = {"tokens": x.grad, **{name: one.grad for name, one in layer.named_parameters()}}
    layer.zero_grad()
    return outputs.detach(), gradients


def _step_on_this_rank(layer: MoE, parts: list[tuple[Tensor, Tensor]]) -> tuple:
    """What one rank does: its part, watched, and gradients that are those of the whole."""
    layer = parallelize_module(layer, init_device_mesh("cpu", (dist.get_world_size(),)), ExpertParallel(loss="sum"))
    x, upstream = parts[dist.get_rank()]
    x = x.detach().clone().requires_grad_()
    with watch_traffic() as forward:
        outputs = layer(x)
    with watch_traffic() as backward:
        (outputs * upstream).sum().backward()
    gradients, spread = {"tokens": x.grad}, expert_parameters(layer)
    for name, parameter in layer.named_parameters():
        if name in spread:
            gradients[name] = parameter.grad.full_tensor()
        else:
            dist.all_reduce(parameter.grad)
            gradients[name] = parameter.grad
    routing = layer.routing.experts, layer.routing.weights.detach(), layer.routing.num_experts
    return outputs.detach(), gradients, routing, forward, backward


def _compute_until_killed(lost: int) -> None:
    layer = MoE(d_model=8, d_expert=8, num_experts=2 * dist.get_world_size(), top_k=2)
    layer = parallelize_module(layer, init_device_mesh("cpu", (dist.get_world_size(),)), ExpertParallel())
    with torch.no_grad():
        for step in range(1000):
            if step == 3 and dist.get_rank() == lost:
                os.kill(os.getpid(), signal.SIGKILL)
            layer(torch.ones(4, 8))
