"""The last rows of a stream, in memory that never grows."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from moe_lab.checks import check_whole


class Ring:
    """Keeps the last ``size`` rows of all that were added, on the device where they come from.

    Example:
        >>> ring = Ring(2, dtype=torch.int16)
        >>> for rows in ([[1, 2]], [[3, 4], [5, 6]]):
        ...     ring.add(torch.tensor(rows))
        >>> ring.read().tolist(), ring.added
        ([[3, 4], [5, 6]], 3)

    Raises ValueError for a size below 0.
    """

    def __init__(self, size: int, dtype: torch.dtype, empty: float | int = 0):
        self.size, self.dtype, self.empty, self.added = check_whole("size", size, 0), dtype, empty, 0
        self._memory: Tensor | None = None

    def add(self, rows: Shaped[Tensor, "rows width"]) -> None:
        """Copy rows in, over the oldest ones. Narrower rows than earlier ones are filled up with ``empty``."""
        many, width = rows.shape
        if self.size and many:
            memory, start = self._room(rows), self.added % self.size
            if start + many <= self.size and width == memory.shape[1]:
                memory[start : start + many].copy_(rows)
            else:
                rows = rows[-self.size :]
                places = torch.arange(self.added + many - len(rows), self.added + many, device=rows.device) % self.size
                rows = torch.nn.functional.pad(rows, (0, memory.shape[1] - width), value=self.empty)
                memory[places] = rows.to(self.dtype)
        self.added += many

    def read(self, last: int | None = None) -> Shaped[Tensor, "kept width"]:
        """The rows that are still there, or the ``last`` of them, the oldest first."""
        if self._memory is None:
            return torch.zeros(0, 0, dtype=self.dtype)
        kept = min(self.added, self.size, self.size if last is None else last)
        return self._memory[torch.arange(self.added - kept, self.added, device=self._memory.device) % self.size]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return 0 if self._memory is None else self._memory.numel() * self._memory.element_size()

    def _room(self, rows: Tensor) -> Tensor:
        """The memory, at least as wide as the rows."""
        memory, width = self._memory, rows.shape[1]
        if memory is None or memory.shape[1] < width:
            # made outside of inference mode, where it was not made for that mode alone
            with torch.inference_mode(False):
                wider = torch.empty(self.size, width, dtype=self.dtype, device=rows.device)
                if memory is not None:
                    wider.fill_(self.empty)[:, : memory.shape[1]] = memory
            self._memory = memory = wider
        return memory
