"""Watching the routing of a model while it runs: loads, balance, and which expert each token went to."""

import importlib.metadata
import inspect
import time
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moe_lab.checks import check_whole
from moe_lab.hf.found import Found, find_layers
from moe_lab.hf.recording import Recording
from moe_lab.hf.ring import Ring
from moe_lab.hf.tokens import Tokens, read_tokens
from moe_lab.hf.watched_layer import Visit, WatchedLayer
from moe_lab.profiling.machine import describe_machine


def watch(model: nn.Module, *, keep: int = 65536, count_padding: bool = False) -> "Watch":
    """Watch every MoE layer of a model: ``with watch(model) as seen: model(tokens)``.

    The model is any of Transformers with the experts interface, under whatever implementation its experts run, or one
    with `MoE` layers; training, inference, ``generate``. Nothing that it computes changes. ``load`` counts every token
    exactly. Of the last ``keep`` tokens a layer, which experts each went to is kept too: 2 bytes a slot, and the
    weight; 0 keeps loads only. `table`, `plot`, `save` and `report` work during and after.

    - What gradient checkpointing computes again in the backward pass is not counted again.
    - Tokens that a 2-D ``attention_mask`` masks out are left out, unless ``count_padding``. What `generate` writes
      behind the end of a text that ended early it does not mask.
    - A layer that runs more than once counts each time; one that several places share has all their names.
    - Under Transformers' own expert parallelism this rank's experts are counted, and experts elsewhere are empty slots.
    - Under ``torch.compile`` watch before the first call: what is compiled already sees no hooks, and then nothing is
      counted. Every MoE layer breaks the graph. A replayed CUDA graph counts nothing either.

    Example:
        >>> from moe_lab import MoE
        >>> model = nn.Sequential(MoE(8, 16, num_experts=4, top_k=2), MoE(8, 16, num_experts=3, top_k=1))
        >>> with watch(model, keep=100) as seen:
        ...     _ = model(torch.randn(5, 8))
        >>> seen
        Watch(Sequential, 2 MoE layers, 5 tokens)
        >>> [int(layer.load.sum()) for layer in seen.layers], seen.layers[0].experts.shape
        ([10, 5], torch.Size([5, 2]))

    Raises TypeError for what is no module; ValueError for a model without MoE layers that can be seen, naming the
    classes that cannot, for a model without weights, for a ``keep`` below 0, and where a watch is entered twice.
    """
    return Watch(model, keep, count_padding)


class Watch(Recording):
    """A recording under way; see `watch`."""

    def __init__(self, model: nn.Module, keep: int, count_padding: bool):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        keep = check_whole("keep", keep, 0)
        self._found = find_layers(model)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("model must have weights, it is on the meta device, where no token is routed")
        layers = [WatchedLayer(found.names[0], found.num_experts, keep, found.names[1:]) for found in self._found]
        super().__init__(layers, describe_model(model, self._found), Ring(keep, torch.int64, empty=-1))
        self._model, self._count_padding = model, count_padding
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._tokens: Tokens | None = None  # of the call of the model that is under way
        self._hooks: list[RemovableHandle] | None = None

    def __enter__(self) -> "Watch":
        if self._hooks is not None:
            raise ValueError("a watch is entered once; make a new one with watch(model)")
        self.about["started"] = _now()
        self._hooks = [
            self._model.register_forward_pre_hook(torch.compiler.disable(self._begin), with_kwargs=True),
            self._model.register_forward_hook(torch.compiler.disable(self._end), always_call=True),
        ]
        for found, layer in zip(self._found, self.layers, strict=True):
            self._hooks.append(found.attach(partial(self._see, layer)))
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()
        self.about["ended"] = _now()
        self.about["machine"] = describe_machine("cuda" if "cuda" in self.about["devices"] else "cpu")
        self._model = self._found = self._tokens = None  # a recording keeps no model alive

    def _begin(self, model: nn.Module, args: tuple, options: dict) -> None:
        """The model is called: note the ids that its layers are going to get."""
        given = dict(zip(self._parameters, args, strict=False)) | options
        self._tokens = read_tokens(given, args, self.about["encoder_decoder"], self._count_padding)
        if self._tokens is not None:
            self._tokens.before = self.ids_kept.added
            self.ids_kept.add(self._tokens.ids.reshape(-1, 1))

    def _end(self, *_call) -> None:
        self._tokens = None

    def _see(self, layer: WatchedLayer, visit: Visit) -> None:
        """A layer is called."""
        if torch._C._current_graph_task_id() != -1:  # within a backward pass: checkpointing computes it again
            layer.recomputed += 1
            return
        tokens, many = self._tokens, len(visit.experts)
        here = tokens is not None and tokens.many == many
        if here and tokens.real is not None:
            visit = Visit(visit.experts[tokens.real], visit.weights[tokens.real], visit.top_k)
            layer.padded += many - len(visit.experts)
        layer.aligned = layer.aligned and here and layer.tokens == tokens.before
        layer.add(visit)


def describe_model(model: nn.Module, found: list[Found]) -> dict:
    """What a recording says of a model: its class, type, size, where it is, and what runs its experts."""
    config = getattr(model, "config", None)
    configs = [getattr(layer.module, "config", None) for layer in found]
    runs = {getattr(config, "_experts_implementation", None) or "its own" for config in configs}
    parameters = list(model.parameters())
    return {
        "model": type(model).__name__,
        "model_type": getattr(config, "model_type", None),
        "loaded_from": getattr(config, "_name_or_path", None) or None,
        "encoder_decoder": bool(getattr(config, "is_encoder_decoder", False)),
        "experts_implementation": ", ".join(sorted(runs)),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "dtypes": ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})),
        "devices": ", ".join(sorted({str(parameter.device) for parameter in parameters})),
        "training": model.training,
        "versions": {name: importlib.metadata.version(name) for name in ("transformers",)},
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
