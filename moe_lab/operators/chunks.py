"""What the grouped operator works with: chunks of rows, and blocks of hidden units, that stay in a CPU's cache.

A fresh large buffer is memory that the system has yet to find, page by page, and that no cache holds. So all that is as
long as a chunk is made once a core, and used again; and what is between the two products is never there for more than a
block of an expert's hidden units.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from moe_lab.operators.products import EVEN_ROWS
from moe_lab.operators.workers import run_side_by_side, side_by_side

HALF_PRECISIONS = (torch.bfloat16, torch.float16)
CHUNK_ROWS = 1024
"""Most rows of an expert at a time on a CPU: each product packs the expert's matrix anew, so large ones are best."""
HALF_CHUNK_ROWS = 320
"""The same forward, where the processor multiplies half precision: packing takes less, what is between them more."""
BLOCK_NUMBERS = 2**17
"""About how many numbers a block's buffer has: half a megabyte of float32."""
BLOCK_UNITS = 64
"""A block has a multiple of so many hidden units, but for an expert's last: products of fewer take longer a number."""
LARGE = 32
"""An expert is large beside the rest if it has this part of all rows."""


def working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which products run: float32 instead of a half precision that this CPU has no instructions for.

    There PyTorch multiplies bfloat16 and float16 one number after the other, several times slower than it widens them
    and multiplies float32 (LOG.md). Sums are at least as exact.

    Example:
        >>> working_dtype(torch.float32, torch.device("cpu"))
        torch.float32
    """
    if device.type != "cpu" or dtype not in HALF_PRECISIONS:
        return dtype
    return dtype if _has_instructions(dtype) else torch.float32


def _has_instructions(dtype: torch.dtype) -> bool:
    """What oneDNN says, which then does the product. Where it cannot be asked, widening is the safe way."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    ask = getattr(torch.ops.mkldnn, name, None)
    return ask is not None and bool(ask())


@dataclass(frozen=True)
class Chunk:
    """Rows and hidden units of one expert; whether its first rows and its last ones; when it is their turn to be added.

    Example:
        >>> Chunk(3, slice(10, 15), slice(0, 8), first=True, last=False, turn=0).size
        5
    """

    expert: int
    rows: slice
    units: slice
    first: bool
    last: bool
    turn: int

    @property
    def size(self) -> int:
        """How many rows."""
        return self.rows.stop - self.rows.start

    @property
    def width(self) -> int:
        """How many hidden units."""
        return self.units.stop - self.units.start

    @property
    def part(self) -> int:
        """0 for an expert's first hidden units, all or half of them; 1 for its second half."""
        return int(self.units.start > 0)

    @property
    def alone(self) -> bool:
        """Whether these are all rows of the expert."""
        return self.first and self.last


class Plan:
    """All chunks of all experts that have rows, those with most rows first, and whether experts run side by side.

    On a GPU an expert takes all its rows at once. In a ``forward`` pass, in that dtype, two cores may have chunks of
    one expert; on the way back they add to one gradient, so they come one after the other. The last two experts, if
    large beside the rest, are taken half by half: all hidden units of one half, then those of the other. So cores that
    did not begin or work alike end more alike. ``numbers_a_row`` is the multiply-adds of a row. The order depends on
    the load alone, so sums are the same with any number of cores.

    Example:
        >>> plan = Plan([2, 0, 1030], 1, torch.device("cpu"), d_expert=128)
        >>> for chunk in plan.chunks:
        ...     print(chunk.expert, chunk.rows, chunk.units, chunk.first, chunk.last)
        2 slice(2, 517, None) slice(0, 64, None) True False
        2 slice(517, 1032, None) slice(0, 64, None) False True
        2 slice(2, 517, None) slice(64, 128, None) True False
        2 slice(517, 1032, None) slice(64, 128, None) False True
        0 slice(0, 2, None) slice(0, 128, None) True True
    """

    def __init__(
        self,
        load: list[int],
        numbers_a_row: int,
        device: torch.device,
        d_expert: int = 1,
        forward: torch.dtype | None = None,
    ):
        self.load, self.device, self.apart = load, device, forward is not None
        self.side_by_side = side_by_side(load, numbers_a_row, device)
        self.failed, self.changed = False, threading.Condition()
        on_cpu, most = device.type == "cpu", HALF_CHUNK_ROWS if forward in HALF_PRECISIONS else CHUNK_ROWS
        if not on_cpu:
            most = max([1, *load])
        experts = [expert for expert in sorted(range(len(load)), key=load.__getitem__, reverse=True) if load[expert]]
        ends, whole, halves = list(accumulate(load)), [slice(0, d_expert)], _halves(d_expert)
        self.chunks: list[Chunk] = []
        for number, expert in enumerate(experts):
            large, several = load[expert] * LARGE >= sum(load), load[expert] > most
            split = on_cpu and number >= len(experts) - 2 and large and not (self.apart and several)
            end, start = ends[expert], ends[expert] - load[expert]
            size = -(-load[expert] // -(-load[expert] // most))  # all chunks alike
            for units in halves if split else whole:
                for at in range(start, end, size):
                    rows = slice(at, min(at + size, end))
                    first, last = at == start, rows.stop == end
                    self.chunks.append(Chunk(expert, rows, units, first, last, turn=len(self.chunks)))

    @property
    def places(self) -> int:
        """How many chunks can be between their start and their turn: one a core, and one that waits."""
        return torch.get_num_threads() + 1 if self.side_by_side else 1

    def make_buffers(self, dtype: torch.dtype) -> "Buffers":
        """Buffers for chunks of this plan."""
        return Buffers(dtype, self.device)

    def run(self, step: Callable[["Buffers", Chunk], None], dtype: torch.dtype) -> None:
        """Call ``step`` for each chunk, with buffers of this dtype that no other core has."""
        if not self.side_by_side:
            buffers = self.make_buffers(dtype)
            for chunk in self.chunks:
                step(buffers, chunk)
            return

        def work(chunks: list[Chunk], buffers: Buffers) -> None:
            try:
                for chunk in chunks:
                    step(buffers, chunk)
            except BaseException:
                self.fail()
                raise

        tasks: dict[tuple[int, ...], list[Chunk]] = {}
        for chunk in self.chunks:
            tasks.setdefault((chunk.turn,) if self.apart else (chunk.expert, chunk.part), []).append(chunk)
        run_side_by_side([partial(work, chunks) for chunks in tasks.values()], lambda: self.make_buffers(dtype))

    def fail(self) -> None:
        """A turn will never be over: nobody needs to wait for it, since there will be no result anyway."""
        with self.changed:
            self.failed = True
            self.changed.notify_all()


@dataclass(frozen=True)
class Block:
    """Hidden units ``start`` to ``stop`` of ``d_expert``; each has ``kinds`` hidden columns: gate and up, or up alone.

    Example:
        >>> Block(0, 2, 2, 2).pieces(torch.arange(4), 0), Block(1, 2, 2, 2).pieces(torch.arange(4), 0)
        ([tensor([0, 1, 2, 3])], [tensor([1]), tensor([3])])
    """

    start: int
    stop: int
    d_expert: int
    kinds: int

    @property
    def width(self) -> int:
        """How many units."""
        return self.stop - self.start

    def pieces(self, matrix: Tensor, dim: int) -> Sequence[Tensor]:
        """What belongs to these units along ``dim``, in as few pieces as there can be: gates and ups may lie apart."""
        if self.width == self.d_expert:
            return [matrix]
        return [matrix.narrow(dim, at, self.width) for at in range(self.start, matrix.shape[dim], self.d_expert)]

    def pieces_of_buffer(self, buffer: Tensor) -> Sequence[Tensor]:
        """As many pieces of a buffer that has columns for these units alone."""
        return [buffer] if self.width == self.d_expert else buffer.chunk(self.kinds, 1)

    def parts(self, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of pieces of hidden values, (gates, ups), or (ups,) where there are no gates."""
        return pieces[0].chunk(self.kinds, 1) if len(pieces) == 1 else pieces


def hidden_blocks(chunk: Chunk, d_expert: int, kinds: int, columns: int) -> list[Block]:
    """A chunk's hidden units, in blocks so small that buffers of (rows, units) stay in a core's cache.

    And those of (units, columns), too, where matrices are widened block by block; else ``columns`` is 0.

    Example:
        >>> _, chunk = Plan([512], 1, torch.device("cpu"), d_expert=1024).chunks
        >>> [block.start for block in hidden_blocks(chunk, 1024, 2, 0)]
        [512, 768]
    """
    count = max(1, round(chunk.width * max(chunk.size, columns) / BLOCK_NUMBERS))
    units = -(-chunk.width // count)
    return equal_blocks(chunk, d_expert, kinds, units if count == 1 else -(-units // BLOCK_UNITS) * BLOCK_UNITS)


def equal_blocks(chunk: Chunk, d_expert: int, kinds: int, units: int) -> list[Block]:
    """A chunk's hidden units, so many a block; the last block has what is left. Where there are none, one without any.

    Example:
        >>> chunk = Plan([512], 1, torch.device("cpu"), d_expert=8).chunks[0]
        >>> equal_blocks(chunk, 8, 2, chunk.width)
        [Block(start=0, stop=8, d_expert=8, kinds=2)]
    """
    first, last, units = chunk.units.start, chunk.units.stop, max(1, units)
    return [Block(at, min(at + units, last), d_expert, kinds) for at in range(first, max(last, first + 1), units)]


def _halves(d_expert: int) -> list[slice]:
    """Of an expert's hidden units, as long as each is at least a block; else all of them."""
    middle = d_expert // 2 // BLOCK_UNITS * BLOCK_UNITS
    return [slice(0, middle), slice(middle, d_expert)] if middle else [slice(0, d_expert)]


class Buffers:
    """Memory that is handed out under a name again and again; and values widened, where that is needed.

    Example:
        >>> buffers = Buffers(torch.float32, torch.device("cpu"))
        >>> second, first = buffers.rows("hidden", 3, 5), buffers.rows("hidden", 2, 5)
        >>> first.shape, second.shape, first.data_ptr() == second.data_ptr()
        (torch.Size([2, 5]), torch.Size([3, 5]), True)
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self._made: dict[str, Tensor | None] = {}

    def rows(self, name: str, count: int, columns: int) -> Tensor:
        """So many rows of the buffer of that name; what was in there is still in there."""
        behind = EVEN_ROWS - 1 if self.dtype == torch.float32 else 0  # see with_rows_behind
        made, numbers = self._made.get(name), (count + behind) * columns
        if made is None or made.numel() < numbers:
            made = self._made[name] = None  # or there would be both for a moment
            made = self._made[name] = torch.empty(numbers, dtype=self.dtype, device=self.device)
        return made.as_strided((count, columns), (columns, 1))

    def gather(self, name: str, source: Tensor, index: Tensor, into: Tensor | None = None) -> Tensor:
        """Copy the rows of ``source`` that ``index`` names, to a buffer of that name or ``into`` what is given."""
        rows = self.rows(name, index.shape[0], source.shape[1]) if into is None else into
        if source.dtype == self.dtype:
            return torch.index_select(source, 0, index, out=rows)
        return rows.copy_(source.index_select(0, index))

    def widen(self, name: str, values: Tensor) -> Tensor:
        """The values in the buffers' dtype: themselves, if that is theirs."""
        return values if values.dtype == self.dtype else self.like(name, values).copy_(values)

    def like(self, name: str, values: Tensor) -> Tensor:
        """Somewhere to write a result of this shape: ``values`` themselves, if they have the buffers' dtype."""
        return values if values.dtype == self.dtype else self.rows(name, *values.shape)
