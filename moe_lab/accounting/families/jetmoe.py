"""JetMoE: experts in the feed-forward network and in attention."""

from moe_lab.accounting.blocks import linear, routed_experts
from moe_lab.accounting.families.registry import decoder, family, num_layers, pre_norms, read_experts
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Weight


@family("jetmoe")
def jetmoe(fields: Fields) -> Architecture:
    """An expert of attention is the queries and the output of num_key_value_heads heads; keys and values are shared.

    Each expert that a token uses brings num_key_value_heads heads of queries. Both groups of experts have a router
    of their own, and one bias after the sum.
    Source: Shen et al. 2024 (arXiv:2404.07413), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    num_experts, top_k = read_experts(fields, "num_local_experts", "num_experts")
    heads, head_dim = fields.size("num_key_value_heads"), fields.size("kv_channels", "head_dim")
    layer = [
        *pre_norms(fields),
        *linear("router", d_model, num_experts),
        *linear("experts", d_model, heads * head_dim, copies=num_experts, used=top_k),
        *linear("experts", heads * head_dim, d_model, copies=num_experts, used=top_k),
        *linear("attention", d_model, 2 * heads * head_dim),
        Weight("attention", (d_model,), use="scale"),
        Attention(heads * top_k, head_dim, head_dim, 2 * heads * head_dim),
        *routed_experts(d_model, fields.size("intermediate_size"), num_experts, top_k),
        Weight("shared_experts", (d_model,), use="scale"),
    ]
    return decoder(fields, [layer] * layers, experts=(num_experts, top_k), moe_layers=layers, tied=True)
