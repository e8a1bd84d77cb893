"""moe-ops: permute, grouped product with TMA and unpermute as separate Triton operators, each with a backward pass."""

from torch import Tensor

from moe_lab.activations import activate
from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """It wants int32 experts; its layout is ours."""
    from moe_ops import grouped_gemm, permute, unpermute

    routing, experts = inputs.routing, inputs.routing.experts.int()

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        rows, row_of, offsets = permute(x, experts, E=routing.num_experts)
        inner = activate(grouped_gemm(rows, w_gate_up, offsets), "swiglu")
        answers = grouped_gemm(inner, w_down, offsets)
        return unpermute(answers, row_of, weights, num_tokens=routing.tokens, num_topK=routing.slots)

    return arrange(inputs, forward)


MOE_OPS = Peer(
    "moe-ops",
    package="moe-ops",
    call="permute, grouped_gemm, swiglu in PyTorch, grouped_gemm, unpermute",
    devices=("cuda",),
    dtypes=("float16", "bfloat16"),
    backward=True,
    graph=True,
    prepare=prepare,
)
