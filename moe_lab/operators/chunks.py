"""What the grouped operator works with: chunks of rows that stay in a CPU's cache, buffers that each chunk uses again.

A fresh large buffer is memory that the system has yet to find, page by page, and that no cache holds. So all that is as
long as a chunk is made once, and only what leaves the operator is as long as all rows.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.operators.pages import empty_in_large_pages
from moe_lab.operators.workers import run_side_by_side, side_by_side

CHUNK_ROWS = 1024
"""Most rows of an expert at a time on a CPU: each product packs the expert's matrix anew, so large ones are best."""


def working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which products run: float32 instead of a half precision that this CPU has no instructions for.

    There PyTorch multiplies bfloat16 and float16 one number after the other, several times slower than it widens them
    and multiplies float32 (LOG.md). Sums are at least as exact.

    Example:
        >>> working_dtype(torch.float32, torch.device("cpu"))
        torch.float32
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return dtype if _has_instructions(dtype) else torch.float32


def _has_instructions(dtype: torch.dtype) -> bool:
    """What oneDNN says, which then does the product. Where it cannot be asked, widening is the safe way."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    ask = getattr(torch.ops.mkldnn, name, None)
    return ask is not None and bool(ask())


Step = Callable[["Buffers", int, slice, bool, bool], None]
"""What is done with a chunk: buffers, the expert, its rows, and whether they are its first and its last ones."""


def each_chunk(load: list[int], dtype: torch.dtype, device: torch.device, numbers_a_row: int, step: Step) -> None:
    """Call ``step`` for each chunk of each expert that has rows; experts side by side, where that is faster.

    An expert's chunks come one after the other; on a GPU it takes all its rows at once. ``numbers_a_row`` is the
    multiply-adds of a row.

    Example:
        >>> each_chunk([2, 0, 1030], torch.float32, torch.device("cpu"), 1, lambda _, *chunk: print(*chunk))
        0 slice(0, 2, None) True True
        2 slice(2, 1026, None) True False
        2 slice(1026, 1032, None) False True
    """

    def work(expert: int, start: int, stop: int, buffers: Buffers) -> None:
        size = _step(stop - start, device)
        for first in range(start, stop, size):
            step(buffers, expert, slice(first, min(first + size, stop)), first == start, first + size >= stop)

    def make_buffers() -> Buffers:
        return Buffers(load, dtype, device)

    ends = list(accumulate(load))
    tasks = [
        partial(work, expert, end - count, end) for expert, (count, end) in enumerate(zip(load, ends, strict=True))
    ]
    busy = [expert for expert, count in enumerate(load) if count]
    if side_by_side(load, numbers_a_row, device):
        run_side_by_side([tasks[expert] for expert in sorted(busy, key=load.__getitem__, reverse=True)], make_buffers)
        return
    buffers = make_buffers()
    for expert in busy:
        tasks[expert](buffers)


def _step(count: int, device: torch.device) -> int:
    return min(max(count, 1), CHUNK_ROWS) if device.type == "cpu" else max(count, 1)


class Buffers:
    """Memory for the longest chunk, handed out under a name again and again; and values widened, where that is needed.

    Example:
        >>> buffers = Buffers([2, 0, 3], torch.float32, torch.device("cpu"))
        >>> first, second = buffers.rows("hidden", 2, 5), buffers.rows("hidden", 3, 5)
        >>> first.shape, second.shape, first.data_ptr() == second.data_ptr()
        (torch.Size([2, 5]), torch.Size([3, 5]), True)
    """

    def __init__(self, load: list[int], dtype: torch.dtype, device: torch.device):
        self.most, self.dtype, self.device = _step(max(load, default=0), device), dtype, device
        self._made: dict[str, Tensor] = {}

    def rows(self, name: str, count: int, columns: int) -> Tensor:
        """The first ``count`` rows of the buffer of that name; what was in there is still in there."""
        return self._take(name, self.most, columns)[:count]

    def gather(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """Copy the rows of ``source`` that ``index`` names; source has the buffers' dtype."""
        return torch.index_select(source, 0, index, out=self.rows(name, len(index), source.shape[1]))

    def widen(self, name: str, values: Tensor) -> Tensor:
        """The values in the buffers' dtype: themselves, if that is theirs."""
        return values if values.dtype == self.dtype else self.like(name, values).copy_(values)

    def like(self, name: str, values: Tensor) -> Tensor:
        """Somewhere to write a result of this shape: ``values`` themselves, if they have the buffers' dtype."""
        return values if values.dtype == self.dtype else self._take(name, *values.shape)

    def _take(self, name: str, rows: int, columns: int) -> Tensor:
        made = self._made.get(name)
        if made is None or made.shape[0] < rows:
            made = self._made[name] = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        return made[:rows]


class StackedGradient:
    """The gradient of a stack of matrices, left.T @ right over each expert's rows; exactly 0 for one without rows.

    A product writes straight into its expert's part. Where an expert's rows come in several chunks, or in a wider dtype
    than the gradient's, they are summed in float32 first and rounded once.

    Example:
        >>> gradient = StackedGradient(torch.empty(2, 1, 1), [3, 0])
        >>> gradient.add(0, torch.ones(3, 1), torch.ones(3, 1), first=True, last=True)
        >>> gradient.whole.flatten()
        tensor([3., 0.])
    """

    def __init__(self, like: Float[Tensor, "num_experts d_left d_right"], load: list[int]):
        self.whole = empty_in_large_pages(*like.shape, dtype=like.dtype, device=like.device)
        self._totals: dict[int, Tensor] = {}
        for expert, count in enumerate(load):
            if not count:
                self.whole[expert].zero_()

    def add(
        self,
        expert: int,
        left: Float[Tensor, "rows d_left"],
        right: Float[Tensor, "rows d_right"],
        first: bool,
        last: bool,
    ) -> None:
        """Add a chunk's product to the part of this expert; chunks of one expert come one after the other."""
        part = self.whole[expert]
        direct = part.dtype == left.dtype and ((first and last) or part.dtype in (torch.float32, torch.float64))
        if first:
            self._totals[expert] = part if direct else torch.empty_like(part, dtype=torch.float32)
        total = self._totals[expert]
        if not first:
            total.add_(left.T @ right)
        elif total.dtype == left.dtype:
            torch.mm(left.T, right, out=total)
        else:
            total.copy_(left.T @ right)
        if last and total is not part:
            part.copy_(total)
        if last:
            del self._totals[expert]


def gather_sum(
    answers: Float[Tensor, "rows d_model"],
    row: Int64[Tensor, "tokens slots"],
    weights: Float[Tensor, "tokens slots"] | None = None,
) -> Float[Tensor, "tokens d_model"]:
    """Each token adds up the rows that it names, weighted: y[t] = sum over s of weights[t, s] * answers[row[t, s]].

    Nobody writes where another writes, so it runs on all cores and is the same each time. Sums run in the wider of the
    two dtypes; half-precision answers are summed in float32 and rounded once, with weights rounded to their dtype.

    Example:
        >>> answers, row = torch.tensor([[1.0], [5.0]]), torch.tensor([[1, 0], [1, 1]])
        >>> gather_sum(answers, row, torch.tensor([[0.5, 1.0], [1.0, 1.0]])).flatten()
        tensor([ 3.5000, 10.0000])
    """
    if weights is not None:
        answers = answers.to(torch.float64) if weights.dtype == torch.float64 else answers
        weights = weights.to(answers.dtype)
    if not row.numel():
        return answers.new_zeros(row.shape[0], answers.shape[1])
    return torch.nn.functional.embedding_bag(row, answers, mode="sum", per_sample_weights=weights)
