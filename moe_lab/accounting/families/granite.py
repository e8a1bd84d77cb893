"""Granite's: plain attention and experts in every layer, later with a shared expert, then with windows and sinks."""

from moe_lab.accounting.blocks import mlp, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_windows,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Weight


@family("granitemoe", "granitemoeshared", "granitemoe_swa")
def granite(fields: Fields) -> Architecture:
    """Experts of intermediate_size, and but for the first release a shared one of shared_intermediate_size, 0 for none.

    Source: IBM 2024, Granite 3.0; granitemoe_swa: IBM, Granite Swash.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_local_experts", "num_experts")
    bias = fields.flag("attention_bias", False)
    shared = 0 if fields.kind == "granitemoe" else fields.size("shared_intermediate_size", low=0)
    windowed = fields.kind == "granitemoe_swa"  # three of four layers; with a sink for each head in all of them
    rest = [
        *pre_norms(fields),
        *([Weight("attention", (fields.size("num_attention_heads"),), use="scale")] if windowed else []),
        *routed_experts(d_model, fields.size("intermediate_size"), *experts),
        *(mlp("shared_experts", d_model, shared) if shared else []),
    ]
    blocks = [
        [*rest, *read_attention(fields, kv_heads=None, qkv_bias=bias, output_bias=bias, window=window)]
        for window in (read_windows(fields, layers, lambda n: n % 4 == 0) if windowed else [None] * layers)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=layers)
