"""The backends of this library, behind the interface of their rivals."""

from torch import Tensor

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import arrange
from moe_lab.experts import expert_mlp
from moe_lab.inputs import LayerInputs
from moe_lab.types import Routing


def our_backend(name: str, **options: str) -> Peer:
    """One backend of `expert_mlp` with its options."""
    words = ", ".join(f'{option}="{value}"' for option, value in options.items())
    triton = options["backend"] == "triton"

    def prepare(inputs: LayerInputs) -> Prepared:
        given = inputs.routing

        def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
            routing = Routing.trusted(given.experts, weights, given.num_experts, given.top_k)
            return expert_mlp(x, routing, w_gate_up, w_down, **options)

        return arrange(inputs, forward)

    return Peer(
        name,
        package="moe-lab",
        call=f"expert_mlp(x, routing, w_gate_up, w_down, {words})",
        devices=("cuda",) if triton else ("cpu", "cuda"),
        dtypes=("float32", "float16", "bfloat16"),
        backward=True,
        graph=triton,
        prepare=prepare,
        gradient_per_expert=options["backend"] == "loop",
        ours=True,
    )
