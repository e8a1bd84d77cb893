"""Sums that many chunks add to: one row a token, and one matrix an expert. They are the same each time.

Numbers added in another order round to another sum. So whichever core is first, chunks add in the order of their turns.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.operators.chunks import Buffers, Chunk, Plan
from moe_lab.operators.pages import empty_in_large_pages
from moe_lab.operators.products import multiply_into

ONE_CORE = 2**15
"""PyTorch gives so many numbers to one core."""


class TokenSum:
    """y[t] = the sum of all rows that chunks bring for token t, each times its weight.

    Rows are brought in ``dtype``. Sums run in the wider of that and the weights', at least in float32.

    A core that is before its turn leaves its rows and goes on; as many may wait as the plan has places beyond one a
    core. A core that finds no place waits for those before it, which are being worked on: none waits for another that
    waits for it.

    Example:
        >>> plan = Plan([2], 1, torch.device("cpu"))
        >>> tokens = TokenSum(3, 1, torch.float32, torch.float32, plan)
        >>> rows = tokens.place(plan.chunks[0]).copy_(torch.tensor([[4.0], [6.0]]))
        >>> tokens.add(plan.chunks[0], rows, torch.tensor([2, 0]), torch.tensor([[0.5], [1.0]]))
        >>> tokens.total.flatten()
        tensor([6., 0., 2.])
        >>> tokens.rounded(torch.bfloat16).flatten()
        tensor([6., 0., 2.], dtype=torch.bfloat16)
    """

    def __init__(self, tokens: int, columns: int, dtype: torch.dtype, weights: torch.dtype, plan: Plan):
        wide = torch.promote_types(torch.promote_types(dtype, weights), torch.float32)
        self.total = empty_in_large_pages(tokens, columns, dtype=wide, device=plan.device)
        if not plan.chunks:
            self.total.zero_()
        self._plan, self._places = plan, [plan.make_buffers(dtype) for _ in range(plan.places)]
        self._turn, self._adding = 0, False
        self._brought: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    def place(self, chunk: Chunk) -> Float[Tensor, "rows columns"]:
        """Where to write the chunk's rows; there may be numbers of another chunk."""
        if chunk.turn >= self._turn + len(self._places):
            with self._plan.changed:
                self._plan.changed.wait_for(lambda: self._plan.failed or chunk.turn < self._turn + len(self._places))
        return self._places[chunk.turn % len(self._places)].rows("answers", chunk.size, self.total.shape[1])

    def add(
        self,
        chunk: Chunk,
        rows: Float[Tensor, "rows columns"],
        token: Int64[Tensor, " rows"],
        weight: Float[Tensor, "rows 1"] | None = None,
    ) -> None:
        """Add the rows that were written to the chunk's place, now or when it is its turn."""
        if len(self._places) == 1:  # there is one core
            self._take(rows, token, weight)
            return
        with self._plan.changed:
            self._brought[chunk.turn] = rows, token, weight
        while True:  # whoever is here adds all there are, up to the first that is not there yet
            with self._plan.changed:
                if self._adding or self._turn not in self._brought:
                    return
                self._adding, brought = True, self._brought.pop(self._turn)
            self._take(*brought)
            with self._plan.changed:
                self._adding = False
                self._plan.changed.notify_all()

    def _take(self, rows: Tensor, token: Tensor, weight: Tensor | None) -> None:
        if self._turn == 0:  # by one core: after work that all share, the others look out for more for a while
            self.total.zero_()
        rows = rows.to(self.total.dtype)
        self.total.index_add_(0, token, rows if weight is None else rows.mul_(weight))
        self._turn += 1

    def rounded(self, dtype: torch.dtype, by_one_core: bool = False) -> Float[Tensor, "tokens columns"]:
        """The sum in another dtype. After one core's work no other looks out for more of it where experts may begin."""
        if self.total.dtype == dtype or not by_one_core or self.total.device.type != "cpu":
            return self.total.to(dtype)
        result = torch.empty_like(self.total, dtype=dtype)
        rows = max(1, ONE_CORE // max(1, result.shape[1]))
        for at in range(0, len(result), rows):
            result[at : at + rows].copy_(self.total[at : at + rows])
        return result


class StackedGradient:
    """The gradient of a stack of matrices, left.T @ right over each expert's rows; exactly 0 for one without rows.

    A product writes straight into its part of its expert's matrix. Where an expert's rows come in several chunks, or in
    a wider dtype than the gradient's, they are summed in float32 first and rounded once.

    Example:
        >>> plan = Plan([3, 0], 1, torch.device("cpu"))
        >>> gradient, buffers = StackedGradient(torch.empty(2, 1, 1), plan), plan.make_buffers(torch.float32)
        >>> gradient.add(plan.chunks[0], torch.ones(3, 1), torch.ones(3, 1), gradient.whole[0], buffers)
        >>> gradient.whole.flatten()
        tensor([3., 0.])
    """

    def __init__(self, like: Float[Tensor, "num_experts d_left d_right"], plan: Plan):
        self.whole = empty_in_large_pages(*like.shape, dtype=like.dtype, device=like.device)
        self._totals: dict[tuple[int, int], Tensor] = {}
        for expert, count in enumerate(plan.load):
            if not count:
                self.whole[expert].zero_()

    def add(
        self,
        chunk: Chunk,
        left: Float[Tensor, "rows part_left"],
        right: Float[Tensor, "rows part_right"],
        part: Float[Tensor, "part_left part_right"],
        buffers: Buffers,
    ) -> None:
        """Add a chunk's product to ``part`` of its expert's matrix; chunks of one expert come one after the other."""
        key = chunk.expert, part.data_ptr()
        if part.dtype == left.dtype and (chunk.alone or part.dtype in (torch.float32, torch.float64)):
            total = part
        elif chunk.alone:
            total = buffers.like("matrix", part)
        elif chunk.first:
            total = self._totals[key] = torch.empty_like(part, dtype=torch.float32)
        else:
            total = self._totals[key]
        multiply_into(total, left.T, right, add=not chunk.first)
        if chunk.last and total is not part:
            part.copy_(total)
            self._totals.pop(key, None)
