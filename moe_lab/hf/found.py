"""The MoE layers of a model that can be watched, and how a call of each is read."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from moe_lab.hf.experts import experts_of
from moe_lab.hf.families import families
from moe_lab.hf.watched_layer import Visit
from moe_lab.layers import MoE


@dataclass(frozen=True)
class Found:
    """A layer: its paths in the model, and ``attach(use)``, which hands each call's `Visit` to ``use``."""

    names: tuple[str, ...]
    module: nn.Module
    num_experts: int

    def attach(self, use: Callable[[Visit], None]):
        """Hook the layer; the hook is called once a call, and leaves everything as it is."""
        if isinstance(self.module, MoE):
            read = torch.compiler.disable(lambda layer, given, answer: use(visit_of_ours(layer)))
            return self.module.register_forward_hook(read)
        names = list(inspect.signature(type(self.module).forward).parameters)[2:4]  # behind self and x

        @torch.compiler.disable
        def read(experts: nn.Module, args: tuple, options: dict) -> None:
            use(visit_of_experts(args, options, names))

        return self.module.register_forward_pre_hook(read, with_kwargs=True)


def find_layers(model: nn.Module) -> list[Found]:
    """Every MoE layer behind Transformers' experts interface, and every `MoE`, in the order of the model.

    A module that stands in several places is one layer. An `MoE` whose experts are a module behind the interface is
    one layer too.

    Example:
        >>> from moe_lab import MoE
        >>> [layer.names for layer in find_layers(nn.Sequential(nn.Linear(4, 4), MoE(4, 4, 3, 1)))]
        [('1',)]

    Raises ValueError for a model without such layers, and names the classes whose experts cannot be seen.
    """
    ours = [part for part in model.modules() if isinstance(part, MoE)]
    within = {id(inner) for part in ours for inner in experts_of(part).values()}
    layers = {id(part): part for part in (*ours, *experts_of(model).values()) if id(part) not in within}
    paths: dict[int, list[str]] = {}
    for path, part in model.named_modules(remove_duplicate=False):
        if id(part) in layers:
            paths.setdefault(id(part), []).append(path)
    if not layers:
        raise ValueError(_nothing_to_watch(model))
    return [Found(tuple(names), layers[key], layers[key].num_experts) for key, names in paths.items()]


def visit_of_ours(layer: MoE) -> Visit:
    """The last call of an `MoE`."""
    routing = layer.routing
    top_k = routing.slots if routing.top_k is None else routing.top_k
    return Visit(routing.experts, routing.weights, top_k)


def visit_of_experts(args: tuple, options: dict, names: list[str]) -> Visit:
    """A call of experts behind the interface: x, index and weights, the last two maybe by the names they have there."""
    index, weights = args[1:3] if len(args) > 2 else [*args[1:], *(options[name] for name in names[-3 + len(args) :])]
    if index.dim() != 2:
        index, weights = index.reshape(-1, index.shape[-1]), weights.reshape(-1, index.shape[-1])
    return Visit(index, weights, index.shape[1])


def _nothing_to_watch(model: nn.Module) -> str:
    """What is wrong with a model without layers to watch, in a sentence."""
    folders = {type(part).__module__.split(".")[-2] for part in model.modules() if "." in type(part).__module__}
    reasons = [family.reason for family in families() if family.name in folders and not family.served]
    served = sum(family.served for family in families())
    what = f": {'; '.join(reasons)}" if reasons else ", which has none of either"
    return (
        f"model must have MoE layers behind Transformers' experts interface ({served} families do: "
        f"moe_lab.hf.families()) or moe_lab.MoE layers, got {type(model).__name__}{what}"
    )
