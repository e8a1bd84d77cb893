"""FlagGems: a port of vLLM's fused_moe kernel, for inference. Two Triton products, SwiGLU and a sum in between."""

from torch import Tensor

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """It wants int32 experts; its layout is ours. Nothing of PyTorch is replaced: that takes ``flag_gems.enable()``."""
    from flag_gems.fused.fused_moe import fused_experts_impl

    experts = inputs.routing.experts.int()

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        return fused_experts_impl(x, w_gate_up, w_down, weights, experts)

    return arrange(inputs, forward)


FLAG_GEMS = Peer(
    "FlagGems (vLLM's kernel)",
    package="flag-gems",
    call="fused_experts_impl(x, w_gate_up, w_down, weights, experts)",
    devices=("cuda",),
    dtypes=("float32", "float16", "bfloat16"),
    backward=False,
    graph=True,
    prepare=prepare,
)
