"""ERNIE 4.5: experts between a first and a last layer, and one flag for all biases but those of the experts."""

from moe_lab.accounting.blocks import mlp, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Weight


@family("ernie4_5_moe")
def ernie4_5_moe(fields: Fields) -> Architecture:
    """The balancing bias of each expert is stored with the router, as a parameter that no gradient reaches.

    Source: Baidu 2025, ERNIE 4.5 Technical Report, section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "moe_num_experts", "num_experts", top_k=("moe_k", "num_experts_per_tok"))
    d_expert = fields.size("moe_intermediate_size")
    shared = fields.size("moe_num_shared_experts", low=0)
    step = fields.size("moe_layer_interval", default=1)
    first = fields.size("moe_layer_start_index", low=0)
    last = fields.size("moe_layer_end_index", default=-1, low=-1)
    last = layers - 1 if last == -1 else last
    bias = fields.flag("use_bias", False)
    rest = [*pre_norms(fields), *read_attention(fields, qkv_bias=bias, output_bias=bias)]
    sparse = [
        *routed_experts(d_model, d_expert, *experts),
        Weight("router", (experts[0],), use="scale"),
        *(mlp("shared_experts", d_model, d_expert * shared, bias=bias) if shared else []),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"), bias=bias)
    which = [first <= number <= last and (number + 1) % step == 0 for number in range(layers)]
    blocks = [[*rest, *(sparse if has else dense)] for has in which]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), tied=True, output_bias=bias)
