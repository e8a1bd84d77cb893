"""What every router shares: the checks of its arguments, and the refusal of options that it does not know."""

import functools
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.types import Routing, may_read

MOST_STEPS = 2**31 - 1
"""Iterations, or tokens of a group, that may be asked for: what an operator's schema takes for a whole number."""


class NotFinite(ValueError):
    """A NaN or an infinity came where only numbers can be worked with."""


def router(only_top_k: int | None = None) -> Callable:
    """Make a function a routing method, called by its own name; ``only_top_k`` pins top_k where the paper does."""

    def wrap(function: Callable[..., Routing]) -> Callable[..., Routing]:
        name = function.__name__
        allowed, required = options_of(function), required_options(function)  # once: a layer routes at every step

        @functools.wraps(function)
        def checked(logits: Tensor, top_k: int, **options) -> Routing:
            check_logits(logits)
            top_k = check_whole("top_k", top_k, 1, logits.shape[1])
            if only_top_k is not None and top_k != only_top_k:
                raise ValueError(f"top_k must be {only_top_k} for method {name!r}, got {top_k}")
            check_options(name, allowed, options)
            for option in required:
                if option not in options:
                    raise ValueError(f"method {name!r} needs the option {option}")
            generator = options.get("generator")
            if generator is not None and not isinstance(generator, torch.Generator):
                raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
            return function(logits, top_k, **options)

        checked.only_top_k = only_top_k
        return checked

    return wrap


def opaque(name: str, arguments: str, shape: Callable[..., Tensor]) -> Callable:
    """Make a selection an operator, "moe_lab::name", which ``torch.compile`` calls and does not look into.

    For what runs in NumPy, or goes on until a condition on values holds. ``arguments`` is their part of the schema;
    ``shape`` takes them too and returns an empty tensor of the result's shape and dtype. There is no gradient.
    """

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        torch.library.define(f"moe_lab::{name}", f"{arguments} -> Tensor")
        torch.library.impl(f"moe_lab::{name}", "CompositeExplicitAutograd", function)
        torch.library.register_fake(f"moe_lab::{name}", shape)
        return getattr(torch.ops.moe_lab, name)

    return wrap


def options_of(function: Callable) -> list[str]:
    """The keyword options that a router function takes, in its own order.

    Example:
        >>> from moe_lab.routers import METHODS
        >>> options_of(METHODS["switch"])
        ['capacity_factor', 'score', 'bias', 'renormalise', 'scale']
    """
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def required_options(function: Callable) -> list[str]:
    """The options that have no default: groups of experts, token ids."""
    parameters = inspect.signature(function).parameters
    return [name for name in options_of(function) if parameters[name].default is inspect.Parameter.empty]


def shared_defaults(function: Callable) -> dict[str, object]:
    """What a method does with scores and weights where nothing is said: its own score, renormalise and scale."""
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in ("score", "renormalise", "scale") if name in parameters}


def check_options(method: str, allowed: list[str], given: Iterable[str]) -> None:
    """Refuse an option that a method does not have."""
    for option in given:
        if option not in allowed:
            raise ValueError(f"{option!r} is no option of method {method!r}; it has {', '.join(allowed)}")


def check_logits(logits: Tensor) -> None:
    """Refuse anything but a dense, finite floating-point matrix (tokens, num_experts)."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if logits.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"logits must be floating point (16, 32 or 64 bits), got {logits.dtype}")
    if logits.layout != torch.strided:
        raise TypeError(f"logits must be a dense tensor, got the layout {logits.layout}")
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be (tokens, num_experts) with at least one expert, got {tuple(logits.shape)}")
    if not may_read(logits):
        return
    if logits.numel() and not all(edge.isfinite() for edge in logits.detach().aminmax()):  # NaN passes through both
        token, expert = (~logits.detach().isfinite()).nonzero()[0].tolist()
        raise NotFinite(f"logits must be finite, logits[{token}, {expert}] is {logits[token, expert].item()}")
