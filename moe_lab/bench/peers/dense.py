"""The limit: a dense SwiGLU layer with d_ff = top_k * d_expert, the FLOPs of the experts and nothing else.

It computes what experts 0..top_k-1 say of every token, added up with weight 1; so it has an exact answer of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lab.activations import activate
from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.inputs import LayerInputs
from moe_lab.types import Routing


def prepare(inputs: LayerInputs) -> Prepared:
    """Stack the matrices of the first experts: [gate of all; up of all], and their columns side by side."""
    own = layer_of_first_experts(inputs)
    experts, d_model, d_expert = own.w_down.shape
    w_gate_up = own.w_gate_up.unflatten(1, (2, d_expert)).transpose(0, 1).reshape(-1, d_model)
    w_down = own.w_down.transpose(0, 1).reshape(d_model, -1)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in (inputs.x, w_gate_up, w_down))

    def forward() -> Tensor:
        x, w_gate_up, w_down = leaves
        return F.linear(activate(F.linear(x, w_gate_up), "swiglu"), w_down)

    def gradients_as_ours(gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
        dx, dw_gate_up, dw_down = gradients
        return {
            "x": dx,
            "w_gate_up": dw_gate_up.view(2, experts, d_expert, d_model).transpose(0, 1).reshape_as(own.w_gate_up),
            "w_down": dw_down.view(d_model, experts, d_expert).transpose(0, 1),
        }

    return Prepared(forward, leaves, gradients_as_ours, inputs.dy, own)


def layer_of_first_experts(inputs: LayerInputs) -> LayerInputs:
    """The same tokens, all of them on experts 0..top_k-1 with weight 1."""
    tokens, slots = inputs.routing.experts.shape
    experts = torch.arange(slots, device=inputs.x.device).expand(tokens, slots)
    routing = Routing.trusted(experts, torch.ones_like(inputs.routing.weights), slots)
    return LayerInputs(inputs.x, routing, inputs.w_gate_up[:slots], inputs.w_down[:slots], inputs.dy)


DENSE = Peer(
    "dense, equal FLOPs",
    package="torch",
    call="linear(swiglu(linear(x, w_gate_up)), w_down), d_ff = top_k * d_expert",
    devices=("cpu", "cuda"),
    dtypes=("float32", "float16", "bfloat16"),
    backward=True,
    graph=True,
    prepare=prepare,
    limit=True,
)
