"""PyTorch's own grouped product, in the fewest operators around it: sort, gather, multiply, activate, multiply, add up.

The pattern is that of torchtitan's MoE layer, whose scores also multiply the experts' answers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lab.activations import activate
from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """The experts' numbers as they come; the two matrices as they are."""
    experts, slots = inputs.routing.experts.reshape(-1), inputs.routing.slots
    names = torch.arange(inputs.routing.num_experts, device=experts.device)
    grouped_mm = F.grouped_mm

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        in_order, order = experts.sort()
        token = order // slots
        ends = torch.searchsorted(in_order, names, right=True, out_int32=True)  # unlike bincount, no wait for the GPU
        hidden = grouped_mm(x[token], w_gate_up.mT, offs=ends)
        answers = grouped_mm(activate(hidden, "swiglu"), w_down.mT, offs=ends)
        return torch.zeros_like(x).index_add(0, token, answers * weights.reshape(-1)[order, None])

    return arrange(inputs, forward, weights_dtype=inputs.x.dtype)


TORCH_GROUPED = Peer(
    "torch grouped_mm",
    package="torch",
    call="F.grouped_mm(x[token], w_gate_up.mT, offs=ends), swiglu, F.grouped_mm(a, w_down.mT, offs=ends), index_add",
    devices=("cpu", "cuda"),
    dtypes=("float32", "float16", "bfloat16"),
    backward=True,
    graph=True,
    prepare=prepare,
)
