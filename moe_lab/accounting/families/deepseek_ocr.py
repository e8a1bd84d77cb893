"""Readers of documents with a small DeepSeek inside: dense layers first, shared experts, attention of every head."""

from moe_lab.accounting.blocks import mlp, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_shared_experts,
    read_sparse,
)
from moe_lab.accounting.families.vision import no_default_for_tying, text_only
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


@family("deepseek_ocr2_text", "unlimited_ocr_text")
def deepseek_ocr2_text(fields: Fields) -> Architecture:
    """Plain attention instead of DeepSeek's latent one; heads are always hidden_size / num_attention_heads wide.

    Source: DeepSeek-AI 2026, DeepSeek-OCR 2 (release); Baidu 2026, Unlimited-OCR (release).
    """
    no_default_for_tying(fields)
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_experts")
    bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    which = read_sparse(fields, layers)
    if not fields.size("n_shared_experts", low=0):
        fields.refuse("mlp_bias", "a bias of no shared experts")
    heads = fields.size("num_attention_heads")
    fields.choice("head_dim", (d_model // heads,), default=d_model // heads)
    if fields.kind == "unlimited_ocr_text":
        fields.get("num_key_value_heads", null=None)  # absent it would be 10; null is one for every head
    rest = [*pre_norms(fields), *read_attention(fields, kv_heads=None, qkv_bias=bias, output_bias=bias)]
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *read_shared_experts(fields, "n_shared_experts", bias=mlp_bias),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"), bias=mlp_bias)
    blocks = [[*rest, *(sparse if has else dense)] for has in which]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), remarks=read_reference_window(fields))


def read_reference_window(fields: Fields) -> tuple[str, ...]:
    """In Unlimited-OCR a token that is written meets the whole prompt, and of what is written the last ones only."""
    window = fields.size("sliding_window", default=None) if fields.kind == "unlimited_ocr_text" else None
    if window is None:
        return ()
    return (f"all context is counted as prompt; of what it wrote itself, a token meets only the last {window} tokens",)


family("deepseek_ocr2", "unlimited_ocr")(text_only("vision_config", "it has two towers, one with windows and a neck"))
