"""What a suite needs to know of an implementation of the experts: one `Peer` each, `Prepared` for given inputs."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_lab.inputs import LayerInputs

DIRECTIONS = ("forward", "forward+backward")

MOST_COPIED_BYTES = {"cpu": 2**34, "cuda": 2**39}
"""What indexing a stacked matrix inside autograd may write: a gradient of the whole stack for each expert, in all."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An implementation with its inputs laid out as it wants them, ready to be timed.

    ``forward()`` gives y (tokens, d_model); which experts, and with which weights, is given, so that no router is
    timed. It follows the grad mode: call it under ``torch.no_grad()`` to time a forward pass alone. ``leaves`` is what
    the backward pass differentiates: x, the routing weights and the two matrices, in the implementation's own layout;
    ``gradients_as_ours`` maps their gradients to our names and layout, to be verified. ``own`` is the layer that is
    computed, where it is not the one that was given.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    gradients_as_ours: Callable[[tuple[Tensor, ...]], dict[str, Tensor]]
    dy: Tensor
    own: LayerInputs | None = None

    def forward_backward(self) -> tuple[Tensor, ...]:
        """The gradients of the leaves for the upstream gradient ``dy``."""
        with torch.enable_grad():
            return torch.autograd.grad(self.forward(), self.leaves, self.dy)


@dataclass(frozen=True, eq=False)
class Peer:
    """An implementation: whose it is, the exact call, where it runs, what it offers.

    ``package`` is the distribution whose version a row reports. ``graph``: whether a CUDA graph can capture it, that
    is, nothing in it waits for the GPU. ``most_tokens``: beyond it takes absurd memory. ``gradient_per_expert``: the
    backward pass writes a gradient of all matrices for each expert; with many of them it would not finish, see
    `MOST_COPIED_BYTES`. ``ours``: one of this library's backends. ``limit``: not a rival, but what no layer of experts
    is expected to beat.
    """

    name: str
    package: str
    call: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    backward: bool
    graph: bool
    prepare: Callable[[LayerInputs], Prepared]
    most_tokens: int | None = None
    gradient_per_expert: bool = False
    ours: bool = False
    limit: bool = False

    @property
    def version(self) -> str | None:
        """The version that is installed, or None."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def why_not(peer: Peer, inputs: LayerInputs, directions: tuple[str, ...] = DIRECTIONS) -> str | None:
    """Why a peer cannot be timed on these inputs, in a few words; None if it can, after it has run once.

    What a peer raises, on import or in a kernel, is a reason and never an exception: a suite goes on without it.

    Example:
        >>> from moe_lab.inputs import make_layer_inputs
        >>> from moe_lab.bench.peers import PEERS
        >>> inputs = make_layer_inputs(4, 8, 4, num_experts=2, top_k=1)
        >>> why_not(PEERS["moe_lab grouped"], inputs) is None, why_not(PEERS["moe_lab triton (save=fast)"], inputs)
        (True, 'runs on cuda, not on cpu')
    """
    return refusal(peer, inputs, directions) or _failure(peer, inputs, directions)


def refusal(peer: Peer, inputs: LayerInputs, directions: tuple[str, ...] = ("forward",)) -> str | None:
    """What can be said without a run: one direction that is missing or hopeless is enough."""
    tokens, device, dtype = len(inputs.x), inputs.x.device.type, str(inputs.x.dtype).removeprefix("torch.")
    if peer.version is None:
        return "not installed"
    if device not in peer.devices:
        return f"runs on {' and '.join(peer.devices)}, not on {device}"
    if dtype not in peer.dtypes:
        return f"takes {', '.join(peer.dtypes)}, not {dtype}"
    if peer.most_tokens is not None and tokens > peer.most_tokens:
        return f"timed up to {peer.most_tokens} tokens: more takes absurd memory"
    if not (peer.ours or peer.limit) and bool((inputs.routing.experts < 0).any()):
        return "takes no empty slots"
    return _refusal_of_the_way_back(peer, inputs) if "forward+backward" in directions else None


def _refusal_of_the_way_back(peer: Peer, inputs: LayerInputs) -> str | None:
    """A backward pass that is not there, or would not finish."""
    copied_bytes = inputs.routing.num_experts * (inputs.w_gate_up.nbytes + inputs.w_down.nbytes)
    if not peer.backward:
        return "has no backward pass"
    if peer.gradient_per_expert and copied_bytes > MOST_COPIED_BYTES[inputs.x.device.type]:
        return f"its backward pass would write {copied_bytes / 1e9:.0f} GB of gradients"
    return None


def _failure(peer: Peer, inputs: LayerInputs, directions: tuple[str, ...]) -> str | None:
    """What a run says; it also compiles and tunes whatever has to be."""
    try:
        prepared = peer.prepare(inputs)
        with torch.no_grad():
            prepared.forward()
        if "forward+backward" in directions:
            prepared.forward_backward()
        if inputs.x.is_cuda:
            torch.cuda.synchronize()
    except Exception as error:  # whatever it is, the suite goes on, and its table says what it was
        message = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {message}"[:120]
    return None
