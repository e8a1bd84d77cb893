"""ScatterMoE: rows gathered inside the first Triton product and scattered by the second, no padding; source only."""

from torch import Tensor, nn

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import UP_GATE, arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """Its first matrix is [up; gate]; it multiplies weights and answers, which must have one dtype."""
    import torch
    from scattermoe.mlp import GLUMLP

    num_experts, d_model, d_expert = inputs.w_down.shape
    experts = inputs.routing.experts
    with torch.device("meta"):
        module = GLUMLP(d_model, d_expert, num_experts, inputs.routing.slots, activation=nn.SiLU())
    del module.experts.weight, module.output_experts.weight  # as parameters; plain tensors take their names below

    def forward(x: Tensor, weights: Tensor, w_up_gate: Tensor, w_down: Tensor) -> Tensor:
        module.experts.weight, module.output_experts.weight = w_up_gate, w_down
        return module(x, weights, experts)

    return arrange(inputs, forward, layout=UP_GATE, weights_dtype=inputs.x.dtype)


SCATTERMOE = Peer(
    "ScatterMoE",
    package="scattermoe",
    call="GLUMLP(d_model, d_expert, num_experts, top_k)(x, weights, experts)",
    devices=("cuda",),
    dtypes=("float32", "float16", "bfloat16"),
    backward=True,
    graph=False,  # bincount waits for the GPU
    prepare=prepare,
)
