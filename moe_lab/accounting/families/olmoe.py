"""OLMoE and FlexOlmo: every layer has experts, and queries and keys are normalised over all heads."""

from moe_lab.accounting.blocks import routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


@family("olmoe", "flex_olmo")
def olmoe(fields: Fields) -> Architecture:
    """FlexOlmo's norms come after attention and experts, and are as many.

    Source: Muennighoff et al. 2024 (arXiv:2409.02060), table 10 and section 2; Shi et al. 2025 (arXiv:2507.07024),
    section 3.
    """
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    layer = [
        *pre_norms(fields),
        *read_attention(fields, kv_heads=None, qkv_bias=bias, output_bias=bias, qk_norm="full"),
        *routed_experts(fields.size("hidden_size"), fields.size("intermediate_size"), *experts),
    ]
    layers = num_layers(fields)
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers)
