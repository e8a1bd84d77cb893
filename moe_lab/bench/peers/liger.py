"""Liger-Kernel, in Triton: rows gathered inside the first product, SwiGLU in its epilogue, its own backward pass."""

from torch import Tensor

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """It wants int32 experts; its layout is ours."""
    from liger_kernel.ops import LigerFusedMoEFunction

    experts = inputs.routing.experts.int()

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        return LigerFusedMoEFunction.apply(x, w_gate_up, w_down, experts, weights)

    return arrange(inputs, forward)


LIGER = Peer(
    "Liger",
    package="liger-kernel",
    call="LigerFusedMoEFunction.apply(x, w_gate_up, w_down, experts, weights)",
    devices=("cuda",),
    dtypes=("float32", "bfloat16"),
    backward=True,
    graph=False,  # it reads the number of tiles
    prepare=prepare,
)
