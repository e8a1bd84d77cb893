"""The floor of a layer's experts: their matrix products alone, as if rows were sorted and buffers there already.

Two products an expert forward, four more backward, each into memory that was there before. It reads every expert's
matrices, so with few rows an expert it takes longer than the dense layer of equal FLOPs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_lab.inputs import LayerInputs
from moe_lab.operators.grouped import sort_rows
from moe_lab.operators.products import multiply_by_onednn


class Floor:
    """The products of one layer, in the dtype of its inputs or, with ``dtype``, in another.

    By ``torch.mm``; or by oneDNN, each into new memory, which for products of this size waits to be taken again.
    """

    def __init__(self, inputs: LayerInputs, dtype: torch.dtype | None = None, by_onednn: bool = False):
        dtype, self.by_onednn = dtype or inputs.x.dtype, by_onednn
        order, load = sort_rows(inputs.routing)
        token = order // inputs.routing.slots
        self.load = load.tolist()
        self.w_gate_up, self.w_down = inputs.w_gate_up.to(dtype), inputs.w_down.to(dtype)
        columns, d_expert = self.w_gate_up.shape[1], self.w_down.shape[2]
        self.rows, self.danswers = inputs.x[token].to(dtype), inputs.dy[token].to(dtype)
        draw = torch.Generator(inputs.x.device).manual_seed(0)
        options = {"dtype": dtype, "device": inputs.x.device}
        # what the activations would have left: any numbers of order 1 do
        self.inner = torch.randn(len(order), d_expert, generator=draw, **options)
        self.dhidden = torch.randn(len(order), columns, generator=draw, **options)
        self.hidden, self.answers = torch.empty_like(self.dhidden), torch.empty_like(self.rows)
        self.dinner, self.drows = torch.empty_like(self.inner), torch.empty_like(self.rows)
        self.dw_gate_up, self.dw_down = torch.empty_like(self.w_gate_up), torch.empty_like(self.w_down)

    def forward(self) -> None:
        """Two products an expert that has rows."""
        for expert, rows in self._blocks():
            self._multiply(self.rows[rows], self.w_gate_up[expert].T, out=self.hidden[rows])
            self._multiply(self.inner[rows], self.w_down[expert].T, out=self.answers[rows])

    def forward_backward(self) -> None:
        """Four more, two of them for the gradients of the matrices."""
        self.forward()
        for expert, rows in self._blocks():
            self._multiply(self.danswers[rows], self.w_down[expert], out=self.dinner[rows])
            self._multiply(self.danswers[rows].T, self.inner[rows], out=self.dw_down[expert])
            self._multiply(self.dhidden[rows].T, self.rows[rows], out=self.dw_gate_up[expert])
            self._multiply(self.dhidden[rows], self.w_gate_up[expert], out=self.drows[rows])

    def error(self) -> float:
        """The relative error of all six products of the busiest expert against float64."""
        self.forward_backward()
        busiest = max(range(len(self.load)), key=self.load.__getitem__)
        rows = dict(self._blocks())[busiest]
        gate_up, down = self.w_gate_up[busiest], self.w_down[busiest]
        pairs: list[tuple[Tensor, Tensor, Tensor]] = [
            (self.hidden[rows], self.rows[rows], gate_up.T),
            (self.answers[rows], self.inner[rows], down.T),
            (self.dinner[rows], self.danswers[rows], down),
            (self.dw_down[busiest], self.danswers[rows].T, self.inner[rows]),
            (self.dw_gate_up[busiest], self.dhidden[rows].T, self.rows[rows]),
            (self.drows[rows], self.dhidden[rows], gate_up),
        ]
        if self.by_onednn:  # it left nothing behind
            pairs = [(multiply_by_onednn(left, right), left, right) for _, left, right in pairs]
        return max(_error(found, left.double() @ right.double()) for found, left, right in pairs)

    def call(self, direction: str) -> Callable[[], None]:
        """The function to time."""
        return self.forward if direction == "forward" else self.forward_backward

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        if self.by_onednn:
            multiply_by_onednn(left, right)
        else:
            torch.mm(left, right, out=out)

    def _blocks(self) -> list[tuple[int, slice]]:
        blocks, start = [], 0
        for expert, count in enumerate(self.load):
            if count:
                blocks.append((expert, slice(start, start + count)))
            start += count
        return blocks


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())
