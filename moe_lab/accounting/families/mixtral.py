"""Mixtral, and the families whose every layer is plain attention and routed experts."""

from moe_lab.accounting.blocks import routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
)
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture


@family("mixtral")
def mixtral(fields: Fields) -> Architecture:
    """Every layer has experts of intermediate_size.

    Source: Jiang et al. 2024 (arXiv:2401.04088), table 1.
    """
    experts = read_experts(fields, "num_local_experts", "num_experts")
    layer = [
        *pre_norms(fields),
        *read_attention(fields, window=fields.size("sliding_window", default=None)),
        *routed_experts(fields.size("hidden_size"), fields.size("intermediate_size"), *experts),
    ]
    layers = num_layers(fields)
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers)


@family("phimoe")
def phimoe(fields: Fields) -> Architecture:
    """Mixtral with LayerNorm and biases.

    Source: Abdin et al. 2024 (arXiv:2404.14219), section 2.
    """
    experts = read_experts(fields, "num_local_experts", "num_experts")
    bias = fields.flag("attention_bias", False)
    layer = [
        *pre_norms(fields, bias=True),
        *read_attention(fields, qkv_bias=bias, output_bias=bias, window=fields.size("sliding_window", default=None)),
        *routed_experts(fields.size("hidden_size"), fields.size("intermediate_size"), *experts),
    ]
    layers = num_layers(fields)
    return decoder(
        fields,
        [layer] * layers,
        experts=experts,
        moe_layers=layers,
        norm_bias=True,
        output_bias=fields.flag("lm_head_bias", False),
    )


@family("minimax_m2")
def minimax_m2(fields: Fields) -> Architecture:
    """Queries and keys normalised over all heads, and many more experts than Mixtral has.

    Source: The MiniMax-M2 Series (arXiv:2605.26494).
    """
    fields.refuse("use_qk_norm", "queries and keys are normalised", harmless=(None, True))
    fields.refuse("qk_norm_type", "they are normalised over all heads", harmless=(None, "per_layer"))
    fields.refuse("shared_intermediate_size", "shared experts are not covered", harmless=(None, 0))
    experts = read_experts(fields, "num_local_experts", "num_experts")
    layers = num_layers(fields)
    fields.refuse("attn_type_list", "linear attention is not covered", harmless=(None, [1] * layers))
    layer = [
        *pre_norms(fields),
        *read_attention(fields, head_dim=REQUIRED, qk_norm="full"),
        *routed_experts(fields.size("hidden_size"), fields.size("intermediate_size"), *experts),
    ]
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers)
