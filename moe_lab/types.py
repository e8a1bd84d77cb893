"""The one value that every router makes and every layer reads, and the words for its dimensions.

Words, the same in code, prose and figures:

- ``tokens``: how many rows are routed together, whatever their batch and sequence were;
- ``num_experts``, ``top_k``: experts in the layer, and how many of them each token asks for;
- ``slots``: columns of a routing, usually ``top_k``;
- ``load``: assignments per expert; ``rows``: all assignments, sorted by expert;
- ``d_model``, ``d_expert``: width of a token, and of one expert's hidden layer;
- ``capacity``: the most rows that an expert may take.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch._subclasses import FakeTensor

from moe_lab.checks import check_whole, show_value

MOST_EXPERTS = 2**31 - 1  # the kernels' tables are int32


def has_values(tensor: Tensor) -> bool:
    """Whether there is anything in a tensor but its shape: not on the meta device, and not in a fake tensor.

    Example:
        >>> has_values(torch.ones(2)), has_values(torch.ones(2, device="meta"))
        (True, False)
    """
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def may_read(tensor: Tensor) -> bool:
    """Whether code may look at a tensor's values, to refuse some of them or to go another way by them.

    Not under ``torch.compile``, whose graph is made before there are any; nor where there are none (`has_values`); nor
    while a CUDA graph is recorded: the eager warm-up before it has looked. Types and shapes can be checked anywhere.

    Example:
        >>> may_read(torch.ones(2)), may_read(torch.ones(2, device="meta"))
        (True, False)
    """
    if torch.compiler.is_compiling() or not has_values(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


@dataclass(frozen=True, eq=False)  # two routings are compared by their tensors, which have no single answer
class Routing:
    """Which experts every token goes to, and with which weight each answer counts.

    ``experts`` is int64 (tokens, slots), ``-1`` where a slot is empty; ``weights`` is floating point
    (tokens, slots), 0 where the slot is empty; no token names an expert twice. ``top_k`` is how many
    experts each token asked for: ``slots`` unless the router says otherwise (expert choice does).

    Example:
        >>> routing = Routing(torch.tensor([[0, 2], [2, -1]]), torch.tensor([[0.75, 0.25], [1.0, 0.0]]), 4)
        >>> routing.load
        tensor([1, 0, 2, 0])

    Raises TypeError for a wrong dtype, ValueError for shapes that differ, num_experts outside 1..2**31 - 1, an expert
    outside ``-1..num_experts-1``, an expert named twice by one token, or a weight in an empty slot.
    """

    experts: Int64[Tensor, "tokens slots"]
    weights: Float[Tensor, "tokens slots"]
    num_experts: int
    top_k: int | None = None

    def __post_init__(self):
        _check_form(self)
        _check_values(self)

    @classmethod
    def trusted(cls, experts: Tensor, weights: Tensor, num_experts: int, top_k: int | None = None) -> "Routing":
        """Build a routing whose values are right by construction, without reading them.

        The routers use it: looking at the values would make a GPU wait for the CPU.
        """
        routing = object.__new__(cls)
        fields = {"experts": experts, "weights": weights, "num_experts": num_experts, "top_k": top_k}
        for name, value in fields.items():
            object.__setattr__(routing, name, value)
        return routing

    @property
    def tokens(self) -> int:
        """How many tokens were routed."""
        return self.experts.shape[0]

    @property
    def slots(self) -> int:
        """Columns: the most experts that one token can have here."""
        return self.experts.shape[1]

    @property
    def asked(self) -> int:
        """Assignments that were asked for: tokens * top_k."""
        return self.tokens * (self.slots if self.top_k is None else self.top_k)

    @property
    def load(self) -> Int64[Tensor, " num_experts"]:
        """Assignments per expert, int64 (num_experts,); empty slots count nowhere."""
        return torch.bincount(self.experts.reshape(-1) + 1, minlength=self.num_experts + 1)[1:]

    def __repr__(self) -> str:
        empty = int((self.experts < 0).sum())
        return (
            f"Routing({self.tokens} tokens x {self.slots} slots over {self.num_experts} experts, "
            f"{empty} empty slots, {str(self.weights.dtype).removeprefix('torch.')} weights)"
        )


def _check_form(routing: Routing) -> None:
    """Refuse wrong types and shapes; costs nothing on any device."""
    experts, weights = routing.experts, routing.weights
    for name, value in (("experts", experts), ("weights", weights)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if experts.dtype != torch.int64:
        raise TypeError(f"experts must be int64, got {experts.dtype}")
    if not weights.is_floating_point():
        raise TypeError(f"weights must be floating point, got {weights.dtype}")
    if experts.dim() != 2 or experts.shape != weights.shape:
        raise ValueError(
            "experts and weights must both be (tokens, slots), "
            f"got experts {tuple(experts.shape)} and weights {tuple(weights.shape)}"
        )
    if experts.device != weights.device:
        raise ValueError(f"experts are on {experts.device} and weights on {weights.device}; both must be on one device")
    if check_whole("num_experts", routing.num_experts, 1) > MOST_EXPERTS:
        raise ValueError(f"num_experts must be at most {MOST_EXPERTS}, got {show_value(routing.num_experts)}")
    if routing.top_k is not None:
        check_whole("top_k", routing.top_k, 1, routing.num_experts)


def _check_values(routing: Routing) -> None:
    """Refuse ids out of range, an expert named twice, NaN weights and weights in empty slots."""
    experts, weights, num_experts = routing.experts, routing.weights, routing.num_experts
    if not may_read(experts) or experts.numel() == 0:
        return
    low, high = (int(v) for v in experts.aminmax())
    if low < -1 or high >= num_experts:
        bad = low if low < -1 else high
        raise ValueError(f"experts must lie in -1..{num_experts - 1} (num_experts={num_experts}), found {bad}")
    if not bool(weights.isfinite().all()):
        raise ValueError("weights must be finite, found NaN or infinity")
    if bool((weights[experts < 0] != 0).any()):
        raise ValueError("weights must be 0 in an empty slot (experts == -1)")
    in_order = experts.sort(dim=1).values
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if bool(twice.any()):
        token = int(twice.any(dim=1).nonzero()[0])
        raise ValueError(f"experts of one token must be distinct, token {token} has {experts[token].tolist()}")
