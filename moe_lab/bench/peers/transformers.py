"""Hugging Face Transformers: the experts of Mixtral, with each implementation that its configuration can name."""

from torch import Tensor

from moe_lab.bench.peers.interface import Peer, Prepared
from moe_lab.bench.peers.layouts import arrange
from moe_lab.inputs import LayerInputs

OUR_NAME = "moe_lab"
"""What `moe_lab.hf.register` calls our own."""


def prepare(inputs: LayerInputs, implementation: str) -> Prepared:
    """Their module, made without memory of its own, around our matrices: it has our layout."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    from moe_lab.hf import register

    num_experts, d_model, d_expert = inputs.w_down.shape
    sizes = {"hidden_size": d_model, "intermediate_size": d_expert, "num_local_experts": num_experts}
    config = MixtralConfig(**sizes, num_attention_heads=1, num_key_value_heads=1)
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = MixtralExperts(config)
    if implementation == OUR_NAME:
        register(OUR_NAME)
    del module.gate_up_proj, module.down_proj  # as parameters; plain tensors take their names below
    experts = inputs.routing.experts

    def forward(x: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
        module.gate_up_proj, module.down_proj = w_gate_up, w_down
        return module(x, experts, weights)

    return arrange(inputs, forward, weights_dtype=inputs.x.dtype)  # as the routers of Qwen3 and OLMoE give them


def implementation(name: str, graph: bool, most_tokens: int | None = None) -> Peer:
    """One of the implementations that ``config._experts_implementation`` takes."""
    return Peer(
        f"Transformers {name}",
        package="moe-lab" if name == OUR_NAME else "transformers",
        call=f'MixtralExperts(config)(x, experts, weights), config._experts_implementation = "{name}"',
        devices=("cpu", "cuda"),
        dtypes=("float32", "float16", "bfloat16"),
        backward=True,
        graph=graph,
        prepare=lambda inputs: prepare(inputs, name),
        most_tokens=most_tokens,
        gradient_per_expert=name == "eager",
        ours=name == OUR_NAME,
    )


GROUPED_MM = implementation("grouped_mm", graph=True)
BATCHED_MM = implementation("batched_mm", graph=True, most_tokens=16)  # copies both matrices for each assignment
EAGER = implementation("eager", graph=False)  # nonzero, once and then for each expert
OURS = implementation(OUR_NAME, graph=False)  # never captured so far: no GPU was at hand
