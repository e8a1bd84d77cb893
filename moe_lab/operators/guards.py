"""What every operator needs around its launches and its derivatives: the right GPU, one thread, clear refusals."""

import threading
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_INTERPRETER = threading.RLock()  # Triton's interpreter keeps the grid of a launch in a global


def launching(tensor: Tensor, interpreted: bool) -> AbstractContextManager:
    """Around launches: Triton starts a kernel on the current GPU, whoever owns the tensors; its interpreter is one."""
    return _INTERPRETER if interpreted else torch.cuda.device_of(tensor)


def refuse_tangents(name: str, *tensors: Tensor) -> None:
    """Raise RuntimeError for a tensor with a tangent: forward-mode derivatives would be 0 without a word.

    Example:
        >>> refuse_tangents("grouped", torch.ones(2))
    """
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(f'the "{name}" backend has no forward-mode derivative; use backend="loop" for it')


def refuse_second_derivative(name: str) -> None:
    """Raise RuntimeError inside a backward pass under create_graph=True: what follows would be a constant, silently."""
    if torch.is_grad_enabled():
        raise RuntimeError(f'the "{name}" backend has no second derivative; use backend="loop" for create_graph=True')


def is_watched() -> bool:
    """Whether a dispatch mode or a profiler is on, which sees the calling thread and PyTorch's own memory alone."""
    return bool(_get_current_dispatch_mode_stack()) or torch.autograd._profiler_enabled()
