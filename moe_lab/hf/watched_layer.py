"""What one MoE layer did while it was watched: exact loads of all tokens, and the experts of the last ones."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.balance import Balance, measure_balance
from moe_lab.hf.ring import Ring

FEW = 64
"""So many tokens may wait to be counted and kept."""


class Visit(NamedTuple):
    """One call of a layer. Rows of ``experts`` are tokens; a number outside of 0..num_experts-1 is an empty slot."""

    experts: Tensor
    weights: Tensor
    top_k: int


class WatchedLayer:
    """The loads of one MoE layer, exact however many tokens came, and token -> expert of the last ``keep`` tokens.

    - ``name``: the module's path in the model; ``also``: its other paths, where layers share one module;
    - ``load``: assignments an expert; ``tokens``: how many tokens they came from; ``calls``: in how many calls;
    - ``experts``, ``weights``: (kept, slots), the oldest first, -1 and 0 in an empty slot;
    - ``positions``: which of the layer's tokens the kept ones are, 0 the first that was ever counted;
    - ``padded``: tokens that were left out as padding; ``recomputed``: calls that were left out, since gradient
      checkpointing made them a second time.

    Example:
        >>> layer = WatchedLayer("mlp.experts", num_experts=3, keep=2)
        >>> layer.add(Visit(torch.tensor([[0], [2], [2]]), torch.ones(3, 1), top_k=1))
        >>> layer.load, layer.experts.tolist(), layer.positions.tolist(), layer.left_out
        (tensor([1, 0, 2]), [[2], [2]], [1, 2], 1)
    """

    def __init__(self, name: str, num_experts: int, keep: int, also: tuple[str, ...] = ()):
        self.name, self.num_experts, self.also = name, num_experts, also
        self.top_k = self.tokens = self.calls = self.padded = self.recomputed = 0
        self.aligned = True  # with the token ids: no call was missed, and none had other tokens
        self._experts_kept = Ring(keep, torch.int16 if num_experts < 2**15 else torch.int32, empty=-1)
        self._weights_kept: Ring | None = None
        self._counts: Tensor | None = None  # with empty slots before the first expert and behind the last
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._tokens_waiting = 0

    def add(self, visit: Visit) -> None:
        """Take a call: count its tokens and keep the last of them, now or later.

        A decode step brings one token, and taking in one costs nearly as much as taking in hundreds. So few tokens wait
        until there are more, or somebody asks.
        """
        experts, weights, top_k = visit
        weights = weights.detach() if weights.requires_grad else weights
        many = len(experts)
        if self._waiting and experts.shape[1] != self._waiting[0][0].shape[1]:
            self._take_in()
        self._waiting.append((experts.clone(), weights.clone()) if many < FEW else (experts, weights))
        self._tokens_waiting += many
        if self._tokens_waiting >= FEW:
            self._take_in()
        self.tokens += many
        self.calls += 1
        self.top_k = max(self.top_k, top_k)

    def _take_in(self) -> None:
        """Count and keep the tokens that wait."""
        if not self._waiting:
            return
        experts, weights = (
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*self._waiting, strict=True)
        )
        self._waiting, self._tokens_waiting = [], 0
        self._count(experts)
        if self._weights_kept is None:
            self._weights_kept = Ring(self._experts_kept.size, weights.dtype)
        self._experts_kept.add(experts)
        self._weights_kept.add(weights)

    @property
    def experts_kept(self) -> Ring:
        """The ring of experts, with all that came."""
        self._take_in()
        return self._experts_kept

    @property
    def weights_kept(self) -> Ring | None:
        """The ring of weights, with all that came; None before the first call."""
        self._take_in()
        return self._weights_kept

    def _count(self, experts: Tensor) -> None:
        numbers = experts.reshape(-1).long().clamp(-1, self.num_experts) + 1
        if self._counts is None:
            with torch.inference_mode(False):  # what is made in that mode can be changed in no other
                self._counts = torch.zeros(self.num_experts + 2, dtype=torch.int64, device=experts.device)
        # not bincount: on a GPU it would wait for the largest number
        self._counts.scatter_add_(0, numbers, torch.ones_like(numbers))

    @property
    def load(self) -> Int64[Tensor, " num_experts"]:
        """Assignments per expert, of every token."""
        self._take_in()
        if self._counts is None:
            return torch.zeros(self.num_experts, dtype=torch.int64)
        return self._counts[1:-1].cpu().clone()

    @property
    def experts(self) -> Int64[Tensor, "kept slots"]:
        """The experts of the kept tokens; -1 is an empty slot."""
        numbers = self.experts_kept.read().cpu().long()
        return numbers.masked_fill((numbers < 0) | (numbers >= self.num_experts), -1)

    @property
    def weights(self) -> Float[Tensor, "kept slots"]:
        """The weights of the kept tokens, as the model had them; 0 in an empty slot."""
        if self.weights_kept is None:
            return torch.zeros(0, 0)
        return self.weights_kept.read().cpu().masked_fill(self.experts < 0, 0.0)

    @property
    def positions(self) -> Int64[Tensor, " kept"]:
        """Which of the layer's tokens are kept."""
        return torch.arange(self.left_out, self.tokens)

    @property
    def kept(self) -> int:
        """How many tokens are kept."""
        return min(self.tokens, self._experts_kept.size)

    @property
    def bytes(self) -> int:
        """Memory that the kept tokens take."""
        return sum(ring.bytes for ring in (self.experts_kept, self.weights_kept) if ring is not None)

    @property
    def left_out(self) -> int:
        """How many tokens were counted and not kept."""
        return self.tokens - self.kept

    @property
    def balance(self) -> Balance:
        """`measure_balance` of the load; without tokens every ratio is 0.

        Where one rank of several holds a part of the experts, its own load is measured, against what it could take.
        """
        top_k = min(max(self.top_k, 1), self.num_experts)
        load = self.load
        # expert choice may give out more than was asked
        return measure_balance(load, top_k=top_k, tokens=max(self.tokens, -(-int(load.sum()) // top_k)))

    def restore(self, load: Int64[Tensor, " num_experts"], experts: Tensor, weights: Tensor, **counts: int) -> None:
        """Become what was saved; ``counts`` are the numbers of the same names."""
        self._counts = torch.nn.functional.pad(load, (1, 1))
        self._weights_kept = Ring(self._experts_kept.size, weights.dtype)
        for name, value in counts.items():
            setattr(self, name, value)
        for ring, rows in ((self.experts_kept, experts), (self.weights_kept, weights)):
            ring.added = self.tokens - len(rows)
            ring.add(rows)

    def __repr__(self) -> str:
        return (
            f"WatchedLayer({self.name!r}, {self.num_experts} experts, {self.tokens:,} tokens, the last "
            f"{self.kept:,} kept)"
        )
