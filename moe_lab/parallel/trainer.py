"""Train the small language model on several ranks: experts spread, the rest data parallel, one batch shared out."""

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from moe_lab import losses
from moe_lab.checkpoint import publish_folder, remove_older, step_name
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.corpus import Corpus
from moe_lab.parallel.style import ExpertParallel, data_parallel, expert_parameters
from moe_lab.ranks import sum_over_ranks
from moe_lab.sharded import load_training, save_training
from moe_lab.train import Trainer, alone_in, train_in
from moe_lab.types import Routing


class ParallelTrainer(Trainer):
    """A `Trainer` of which every rank of a mesh ("replica", "expert") holds a part.

    Each rank reads its share of the batch. A loss is the mean over the ranks, a bias learns from all of them, and a
    gradient is shortened by its norm over all of them, so that the curve is that of one process but for rounding.
    """

    mesh: DeviceMesh

    @property
    def group(self) -> dist.ProcessGroup:
        """All ranks: together they hold a batch."""
        return dist.group.WORLD

    @property
    def leads(self) -> bool:
        """Rank 0 writes what is not sharded, and speaks."""
        return dist.get_rank() == 0

    def spread(self):
        """Spread the experts over the mesh and wrap the rest in DDP."""
        style = ExpertParallel(replicas=self.mesh["replica"])
        for layer in self.model.layers:
            parallelize_module(layer, self.mesh["expert"], style)
        self.spread_weights = expert_parameters(self.model)
        return data_parallel(self.model)

    def parameter_groups(self) -> list[dict]:
        """Spread weights in groups of their own: one fused step cannot take both kinds."""
        spread = set(self.spread_weights.values())
        return [
            {**group, "params": [p for p in group["params"] if (p in spread) is kind]}
            for group in super().parameter_groups()
            for kind in (True, False)
        ]

    def draw(self, text: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """This rank's rows of the batch that one process would draw."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        return tuple(window.chunk(ranks)[rank] for window in super().draw(text, draw))

    def mean(self, loss: float) -> float:
        """The mean over the ranks."""
        return self._sum(loss) / dist.get_world_size()

    def clip(self, longest: float) -> float:
        """Shorten the gradient by its norm over all ranks."""
        spread = [p.grad.to_local() for p in self.spread_weights.values()]
        plain = [p.grad for name, p in self.model.named_parameters() if name not in self.spread_weights]
        norms = [float(torch.nn.utils.get_total_norm(gradients)) for gradients in (spread, plain)]
        held_twice = self.mesh["replica"].size()  # every replica has the same gradients of its experts
        norm = (self._sum(norms[0] ** 2) / held_twice + norms[1] ** 2) ** 0.5
        for gradient in [*spread, *plain]:
            gradient *= min(1.0, longest / (norm + 1e-6))
        return norm

    def batch_load(self, logits: Tensor, routing: Routing) -> Tensor:
        """What all ranks asked for."""
        return sum_over_ranks(losses.asked_load(logits, routing), self.group)

    def loads(self) -> list[list[int]]:
        """Loads of the last step over all ranks, layer by expert."""
        here = [layer.routing.load for layer in self.model.layers]
        if not here:
            return []
        whole = sum_over_ranks(torch.cat(here), self.group)  # once a step, and not once a layer
        return [load.tolist() for load in whole.split([len(load) for load in here])]

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes so."""
        return self._sum(float(wish)) > 0

    def publish(self, out: Path) -> None:
        """Add a checkpoint to ``out``: rank 0 makes its folder, all write into it, rank 0 gives it its name."""
        self.check_finite()
        problem = self._publish_with_others(out) if self.leads else self._write_for_rank_0()
        if said := _from_rank_0(str(problem or "")):  # all stop, or all go on
            raise problem or OSError(said)

    def check_finite(self) -> None:
        """Refuse, on all ranks, weights that are not finite on any."""
        parts = {name: p.to_local() if name in self.spread_weights else p for name, p in self.model.named_parameters()}
        bad = [name for name, part in parts.items() if not bool(part.isfinite().all())]
        if self.agree(bool(bad)):
            self._diverged(f"{bad[0] if bad else 'a weight of another rank'} is not finite")

    def load(self, folder: Path) -> None:
        """Take model and optimiser from a checkpoint, whoever wrote it."""
        load_training(self.model, self.optimizer, folder)

    def _publish_with_others(self, out: Path) -> OSError | None:
        told = []

        def write(folder: Path) -> None:
            told.append(_from_rank_0(str(folder)))
            save_training(self.model, self.optimizer, folder)
            self.describe(folder)

        try:
            publish_folder(out, step_name(self.history.steps), write)
            remove_older(out, self.history.steps)
        except OSError as error:
            if not told:
                _from_rank_0("")  # they wait to hear of a folder
            return error

    def _write_for_rank_0(self) -> None:
        if folder := _from_rank_0(""):
            with contextlib.suppress(OSError):  # then rank 0 has it too, and tells
                save_training(self.model, self.optimizer, Path(folder))

    def _sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.config.device)
        dist.all_reduce(total)
        return total.item()


def check_ranks(model_config: LanguageModelConfig, config: TrainConfig, ranks: int, expert_ranks: int) -> None:
    """Refuse, before anybody speaks to anybody, ranks that do not divide what they are to share."""
    if expert_ranks < 1 or ranks % expert_ranks:
        raise ValueError(f"expert_parallel={expert_ranks} must divide the {ranks} ranks that were started")
    if config.batch % ranks:
        raise ValueError(f"batch={config.batch} must be divisible by the {ranks} ranks that share it")
    for experts in set(model_config.experts_by_layer):
        if experts % expert_ranks:
            raise ValueError(f"num_experts={experts} must be divisible by expert_parallel={expert_ranks}")


def train_on_ranks(
    model_config: LanguageModelConfig,
    config: TrainConfig,
    out: Path,
    *,
    expert_ranks: int,
    corpus: Corpus | None = None,
    fresh: bool = False,
) -> Path:
    """`train` on the ranks that have `joined`, experts spread over ``expert_ranks`` of them and replicated beyond.

    Raises what `train` does; ValueError, on all ranks and before they speak, where ``expert_ranks`` does not divide the
    ranks and every layer's experts, or the ranks do not divide the batch.
    """
    ranks = dist.get_world_size()
    check_ranks(model_config, config, ranks, expert_ranks)
    mesh = init_device_mesh(config.device, (ranks // expert_ranks, expert_ranks), mesh_dim_names=("replica", "expert"))
    kind = type("ParallelTrainer", (ParallelTrainer,), {"mesh": mesh})
    with contextlib.ExitStack() as stack:
        refusal = ""
        if dist.get_rank() == 0:
            try:
                stack.enter_context(alone_in(out))
            except (ValueError, OSError) as error:
                refusal = str(error)
        if refusal := _from_rank_0(refusal):
            raise ValueError(refusal)
        return train_in(kind, model_config, config, out, corpus, fresh, watch=None)


def _from_rank_0(words: str) -> str:
    """Rank 0's words, to all ranks."""
    said = [words]
    dist.broadcast_object_list(said, src=0)
    return said[0]
