"""Every size and setting of the small language model and its training. Needs no torch, so that ``--help`` is quick."""

import dataclasses
from dataclasses import dataclass

from moe_lab.checks import check_number, check_whole

AUX_LOSSES = ("", "switch_aux", "gshard", "sequence_aux")
PRECISIONS = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda")


def option(default: object, meaning: str, *, newer: bool = False):
    """A config field with the words that ``--help`` shows for it; where it is ``newer``, older files may lack it."""
    kind = {"default_factory": default} if callable(default) else {"default": default}
    return dataclasses.field(**kind, metadata={"help": meaning, "newer": newer})


@dataclass(frozen=True)
class LanguageModelConfig:
    """Every size of a `LanguageModel`; ``bias_rate`` 0 trains without a balancer.

    Example:
        >>> LanguageModelConfig(num_experts=8).top_k
        2

    Raises ValueError or TypeError, with the name and the value, for sizes that cannot be.
    """

    d_model: int = option(128, "width of a token")
    num_layers: int = option(4, "blocks of attention and MoE")
    num_heads: int = option(4, "attention heads")
    context: int = option(256, "longest text, in bytes")
    d_expert: int = option(128, "hidden width of one expert")
    num_experts: int = option(16, "experts a layer; 0 for dense layers")
    top_k: int = option(2, "experts a token")
    method: str = option("sigmoid_bias", "routing method, one that needs no options of its own")
    num_shared: int = option(0, "experts that every token visits")
    bias_rate: float = option(1e-2, "step of the balancing bias; 0 for none")
    balancer: str = option("sign", "rule by which the bias learns: sign, midpoint, quantile or bip", newer=True)
    eval_method: str = option("", "routing method outside of training; the same if empty", newer=True)
    router_options: dict = option(  # noqa: RUF009
        dict, 'options of the method, as JSON: {"score": "sigmoid"}', newer=True
    )
    pyramid: list = option(  # noqa: RUF009
        list, "experts of each layer, as JSON: [0, 4, 8]; num_experts in all of them if empty", newer=True
    )
    mix_shared: bool = option(False, "each token weighs its shared experts against the others", newer=True)

    def __post_init__(self):
        for name in ("d_model", "num_layers", "num_heads", "context", "d_expert"):
            check_whole(name, getattr(self, name), 1, 2**20)
        check_whole("num_experts", self.num_experts, 0, 2**20)
        if not isinstance(self.pyramid, list) or len(self.pyramid) not in (0, self.num_layers):
            raise ValueError(f"pyramid must be a list of num_layers={self.num_layers} numbers, got {self.pyramid!r}")
        for experts in self.pyramid:
            check_whole("pyramid", experts, 0, 2**20)
        check_whole("top_k", self.top_k, 1, min(filter(None, self.experts_by_layer), default=2**20))
        check_whole("num_shared", self.num_shared, 0, 2**10)
        check_number("bias_rate", self.bias_rate, at_least=0)
        for name in ("method", "balancer", "eval_method"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a name, got {getattr(self, name)!r}")
        if not isinstance(self.router_options, dict):
            raise TypeError(f"router_options must be a dict of options, got {self.router_options!r}")
        if not isinstance(self.mix_shared, bool):
            raise TypeError(f"mix_shared must be true or false, got {self.mix_shared!r}")
        if self.mix_shared and not self.num_shared:
            raise ValueError("mix_shared needs num_shared to be at least 1, got 0")
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads must divide d_model={self.d_model}, got {self.num_heads}")

    @property
    def experts_by_layer(self) -> list[int]:
        """Experts of each layer, 0 where it is dense."""
        return self.pyramid or [self.num_experts] * self.num_layers


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, from which seed. Every draw of a step follows from ``seed`` and the step alone.

    Example:
        >>> TrainConfig(steps=100).batch
        16

    Raises ValueError or TypeError, with the name and the value, for numbers that cannot be.
    """

    steps: int = option(1400, "optimiser steps in all")
    batch: int = option(16, "texts a step, each as long as the context")
    learning_rate: float = option(3e-3, "highest learning rate")
    warmup: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.1, "AdamW's weight decay, matrices only")
    seed: int = option(0, "seed of the weights and of every batch")
    validate_every: int = option(100, "steps between validations")
    checkpoint_every: int = option(100, "steps between checkpoints: the most that a kill can cost")
    aux_loss: str = option("", "balancing loss: switch_aux, gshard or sequence_aux; none if empty", newer=True)
    aux_coefficient: float = option(1e-2, "what the balancing loss is multiplied with", newer=True)
    z_coefficient: float = option(0.0, "what the router z-loss is multiplied with; 0 for none", newer=True)
    device: str = option("cpu", "where to train: cpu or cuda", newer=True)
    precision: str = option(
        "float32", "float32, or bfloat16: products in it, weights and router in float32", newer=True
    )

    def __post_init__(self):
        for name in ("steps", "batch", "validate_every", "checkpoint_every"):
            check_whole(name, getattr(self, name), 1, 2**32)
        check_whole("warmup", self.warmup, 0, 2**32)
        check_whole("seed", self.seed, 0, 2**32)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        if self.aux_loss not in AUX_LOSSES:
            raise ValueError(f"aux_loss must be one of {', '.join(AUX_LOSSES[1:])}, or empty; got {self.aux_loss!r}")
        for name, allowed in (("device", DEVICES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        check_number("aux_coefficient", self.aux_coefficient, at_least=0)
        check_number("z_coefficient", self.z_coefficient, at_least=0)
