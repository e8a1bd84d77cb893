"""OpenAI's triton_kernels, for inference: ragged products that gather rows, with SwiGLU at the end, or scatter them."""

from torch import Tensor

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import INTERLEAVED, arrange
from moe_lab.inputs import LayerInputs


def prepare(inputs: LayerInputs) -> Prepared:
    """Gate and up interleaved, for the epilogue; the bit matrix of the routing, which its router would hand over."""
    complete = supply_what_older_tritons_lack()
    from triton_kernels.matmul import FnSpecs, FusedActivation, matmul
    from triton_kernels.matmul_details.opt_flags import scoped_opt_flags_constraints
    from triton_kernels.reduce import reduce
    from triton_kernels.tensor import make_bitmatrix_metadata, make_ragged_tensor_metadata
    from triton_kernels.topk import topk_forward

    from moe_lab.bench.peers.triton_kernels_epilogue import swiglu

    routing, experts = inputs.routing, inputs.routing.experts.int()
    scores = routing.weights.new_zeros(routing.tokens, routing.num_experts)
    _, _, chosen = topk_forward(scores, routing.slots, apply_softmax=False, y_indx=experts)
    activation = FusedActivation(FnSpecs("swiglu", swiglu, (), reduction_n=2), ())

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        by_expert = make_bitmatrix_metadata(experts, chosen)
        order, ragged = by_expert.col_sorted_indx, make_ragged_tensor_metadata(by_expert.col_sum, experts.numel())
        gather = {"gather_indx": order // routing.slots, "fused_activation": activation}
        with scoped_opt_flags_constraints({} if complete else {"split_k": 1}):  # split products end in reduce, too
            inner = matmul(x, w_gate_up.mT, None, ragged, **gather)
            answers = matmul(inner, w_down.mT, None, ragged, scatter_indx=order).view(*weights.shape, -1)
        if not complete:
            return (answers * weights[:, :, None]).sum(dim=1)
        return reduce(answers, dim=1, scale=weights[:, :, None].expand_as(answers))[0]

    return arrange(inputs, forward, layout=INTERLEAVED, weights_dtype=None if complete else inputs.x.dtype)


def supply_what_older_tritons_lack() -> bool:
    """Let the package load under an older Triton than it is written for; tell whether all of it compiles there.

    Triton 3.6 and 3.7 do not know gfx1250, nor does a kernel there know in which line it is defined. Under 3.6 the
    package's ``reduce`` does not compile.
    """
    import triton
    from triton.language import target_info

    if not hasattr(target_info, "is_hip_gfx1250"):

        def is_hip_gfx1250():
            return False

        target_info.is_hip_gfx1250 = triton.constexpr_function(is_hip_gfx1250)
    for name in ("def_file_line_number", "def_file_col_number"):  # where a traceback would point
        if not hasattr(triton.JITFunction, name):
            setattr(triton.JITFunction, name, 1)
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7)


TRITON_KERNELS = Peer(
    "triton_kernels",
    package="tokenspeed-triton-kernels",
    call="make_bitmatrix_metadata, make_ragged_tensor_metadata, matmul(gather, swiglu), matmul(scatter), reduce",
    devices=("cuda",),
    dtypes=("float16", "bfloat16"),
    backward=False,
    graph=True,
    prepare=prepare,
)
