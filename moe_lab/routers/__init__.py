"""Routers: from router logits to a `Routing`, one function a method, all behind `route`."""

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

from moe_lab.routers.balanced import balanced, base
from moe_lab.routers.capacity import capacity_top_k, expert_capacity, gshard, switch
from moe_lab.routers.causal import balanced_causal
from moe_lab.routers.choice import noisy_top_k, sigmoid_bias, top_k
from moe_lab.routers.expert_choice import expert_choice
from moe_lab.routers.fixed import hash, random
from moe_lab.routers.groups import group_limited, grouped_experts
from moe_lab.routers.registry import check_options, options_of, required_options, shared_defaults
from moe_lab.routers.sinkhorn import sinkhorn
from moe_lab.types import Routing

__all__ = [
    "METHODS",
    "bias_scale",
    "check_options",
    "expert_capacity",
    "find_method",
    "options_of",
    "required_options",
    "route",
    "shared_defaults",
]

METHODS: dict[str, Callable[..., Routing]] = {
    # every token chooses for itself
    "top_k": top_k,
    "sigmoid_bias": sigmoid_bias,
    "noisy_top_k": noisy_top_k,
    # experts have places, overflow is dropped or sent on
    "switch": switch,
    "gshard": gshard,
    "capacity_top_k": capacity_top_k,
    # experts live in groups
    "group_limited": group_limited,
    "grouped_experts": grouped_experts,
    # experts choose
    "expert_choice": expert_choice,
    # the logits choose nothing
    "hash": hash,
    "random": random,
    # the whole batch is assigned at once
    "sinkhorn": sinkhorn,
    "base": base,
    "balanced": balanced,
    # tokens in order, balanced by the end of each group
    "balanced_causal": balanced_causal,
}
"""Name of a method -> its function, called as ``function(logits, top_k, **options)``."""


def route(logits: Float[Tensor, "tokens num_experts"], top_k: int, method: str = "top_k", **options) -> Routing:
    """Send each token to experts by one of the `METHODS`.

    Every method in which tokens choose shares four options:
    ``score`` (what becomes a weight: "softmax" over all experts, "sigmoid" of each, or
    "softmax_after_top_k" over the chosen logits only), ``bias`` ((num_experts,), added for the
    selection and never to a weight), ``renormalise`` (weights of a token sum to 1, unless its scores underflow:
    `weigh`), ``scale`` (multiplies the weights, last). Weights are differentiable in ``logits``; the selection is not.
    Half-precision logits are routed in float32. Equal scores go to the lower expert, on every device and in the kernel
    (`gate`); ``torch.topk``, by which Transformers selects, promises no order among equals.

    So Mixtral and Qwen3 are "top_k" with ``renormalise=True``, OLMoE is "top_k", gpt-oss is "top_k" with
    ``score="softmax_after_top_k"``, DeepSeek-V2 is "group_limited" with ``group_top=1`` and ``scale=16``, and
    DeepSeek-V3 is "group_limited" with ``score="sigmoid"``, its bias, ``renormalise=True`` and ``scale=2.5``.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> routing = route(logits, top_k=2, renormalise=True)
        >>> routing.experts, routing.weights
        (tensor([[0, 2]]), tensor([[0.7311, 0.2689]]))

    Raises ValueError for an unknown method or option, logits that are not finite, and ``top_k``
    outside ``1..num_experts``; TypeError for logits that are not floating point.
    """
    return find_method(method)(logits, top_k, **options)


def find_method(name: str) -> Callable[..., Routing]:
    """The function behind a method's name; raises ValueError, with the names there are, for any other."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    return METHODS[name]


def bias_scale(method: str, options: Mapping[str, object]) -> str:
    """What a method adds a bias to under these options: "logits", or the "softmax" or "sigmoid" of them.

    Example:
        >>> bias_scale("top_k", {}), bias_scale("balanced", {}), bias_scale("balanced", {"objective": "score"})
        ('softmax', 'logits', 'softmax')
    """
    function = find_method(method)
    score = options.get("score", shared_defaults(function).get("score"))
    on_logits = "objective" in options_of(function) and options.get("objective", "logits") == "logits"
    return "logits" if on_logits or score == "softmax_after_top_k" else score
