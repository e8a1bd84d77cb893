"""SonicMoE: CuTe-DSL kernels for Hopper and Blackwell; beside x it keeps the hidden values alone for the way back."""

import torch
from torch import Tensor

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import INTERLEAVED, arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """Its default layout interleaves gate and up. Tokens come sorted, one entry for each assignment."""
    from sonicmoe import moe_general_routing_inputs
    from sonicmoe.enums import ActivationType

    routing = inputs.routing
    experts = routing.experts.reshape(-1).int()
    token = torch.arange(routing.tokens, device=experts.device, dtype=torch.int32).repeat_interleave(routing.slots)

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        y, _ = moe_general_routing_inputs(
            x,
            weights.reshape(-1),
            token,
            experts,
            w_gate_up.permute(1, 2, 0),
            None,
            w_down.permute(1, 2, 0),
            None,
            E=routing.num_experts,
            stream_id=0,  # named, and not used
            activation_type=ActivationType.SWIGLU,
            is_inference_mode_enabled=not torch.is_grad_enabled(),
        )
        return y

    return arrange(inputs, forward, layout=INTERLEAVED)


SONICMOE = Peer(
    "SonicMoE",
    package="sonic-moe",
    call="moe_general_routing_inputs(x, weights, token, experts, w1.permute(1, 2, 0), None, w2.permute(1, 2, 0), None)",
    devices=("cuda",),
    dtypes=("float16", "bfloat16"),
    backward=True,
    graph=True,
    prepare=prepare,
)
