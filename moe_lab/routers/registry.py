"""What every router shares: the checks of its arguments, and the refusal of options that it does not know."""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from moe_lab.types import Routing


def router(only_top_k: int | None = None) -> Callable:
    """Make a function a routing method, called by its own name; ``only_top_k`` pins top_k where the paper does."""

    def wrap(function: Callable[..., Routing]) -> Callable[..., Routing]:
        name = function.__name__

        @functools.wraps(function)
        def checked(logits: Tensor, top_k: int, **options) -> Routing:
            check_logits(logits)
            check_top_k(top_k, logits.shape[1])
            if only_top_k is not None and top_k != only_top_k:
                raise ValueError(f"top_k must be {only_top_k} for method {name!r}, got {top_k}")
            allowed = options_of(function)
            for option in options:
                if option not in allowed:
                    raise ValueError(f"{option!r} is no option of method {name!r}; it has {', '.join(allowed)}")
            for option in required_options(function):
                if option not in options:
                    raise ValueError(f"method {name!r} needs the option {option}")
            return function(logits, top_k, **options)

        return checked

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


def check_logits(logits: Tensor) -> None:
    """Refuse anything but a finite floating-point matrix (tokens, num_experts)."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be (tokens, num_experts) with at least one expert, got {tuple(logits.shape)}")
    # While a CUDA graph is recorded no value can be read; the eager warm-up before it has looked.
    if logits.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    finite = logits.detach().isfinite()
    if not bool(finite.all()):
        token, expert = (~finite).nonzero()[0].tolist()
        raise ValueError(f"logits must be finite, logits[{token}, {expert}] is {logits[token, expert].item()}")


def check_top_k(top_k: int, num_experts: int) -> None:
    """Refuse a top_k outside 1..num_experts."""
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int, got {top_k!r}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie in 1..{num_experts} (num_experts), got {top_k}")


def check_positive(name: str, value: float) -> None:
    """Refuse an option that is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
