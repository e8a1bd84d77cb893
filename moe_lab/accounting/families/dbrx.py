"""DBRX: every layer has experts; its sizes have names of their own, and lie in two configs within the config."""

from moe_lab.accounting.blocks import grouped_query_attention, norm, routed_experts
from moe_lab.accounting.families.registry import decoder, family, num_layers
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


@family("dbrx")
def dbrx(fields: Fields) -> Architecture:
    """16 experts of which a token uses 4, grouped-query attention, LayerNorm without shifts.

    Source: Databricks 2024, model card and release note of DBRX.
    """
    d_model, layers = fields.size("d_model", "hidden_size"), num_layers(fields, "n_layers", "num_hidden_layers")
    heads = fields.size("n_heads", "num_attention_heads", high=d_model)
    attention, feed_forward = fields.inner("attn_config"), fields.inner("ffn_config")
    kv_heads = attention.size("kv_n_heads", high=heads)
    if d_model % heads or heads % kv_heads:
        raise ValueError(
            f"{fields.name('n_heads', 'num_attention_heads')} must divide d_model={d_model} and be a multiple of "
            f"attn_config.kv_n_heads={kv_heads}, got {heads}"
        )
    fields.refuse("tie_word_embeddings", "DBRX has an output projection of its own")
    num_experts = feed_forward.size("moe_num_experts")
    experts = num_experts, feed_forward.size("moe_top_k", high=num_experts)
    layer = [
        *norm(d_model),
        *norm(d_model),
        *grouped_query_attention(d_model, heads, kv_heads, d_model // heads),
        *routed_experts(d_model, feed_forward.size("ffn_hidden_size"), *experts),
    ]
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers, width="d_model")
