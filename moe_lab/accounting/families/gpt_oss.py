"""gpt-oss, and the privacy filter made of its layers: biases everywhere, a sink for each head, windows."""

from dataclasses import replace

from moe_lab.accounting.blocks import embedding, grouped_query_attention, linear, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_heads,
)
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Attention, Weight


@family("gpt_oss")
def gpt_oss(fields: Fields) -> Architecture:
    """Source: OpenAI 2025, gpt-oss model card (arXiv:2508.10925), section 2 and table 1."""
    layers, d_model = num_layers(fields), fields.size("hidden_size")
    experts = read_experts(fields, "num_local_experts", "num_experts")
    bias = fields.flag("attention_bias", True)
    kinds = fields.per_layer("layer_types", layers, ("sliding_attention", "full_attention"), default=None)
    kinds = kinds or ["full_attention" if number % 2 else "sliding_attention" for number in range(layers)]
    window = fields.size("sliding_window", null=None)
    sparse = routed_experts(d_model, fields.size("intermediate_size"), *experts, bias=True, router_bias=True)
    blocks = []
    for kind in kinds:
        sinks = Weight("attention", (fields.size("num_attention_heads"),), use="scale")
        attention = read_attention(
            fields,
            head_dim=REQUIRED,
            qkv_bias=bias,
            output_bias=bias,
            window=window if kind == "sliding_attention" else None,
        )
        blocks.append([*pre_norms(fields), *attention, sinks, *sparse])
    return decoder(fields, blocks, experts=experts, moe_layers=layers)


@family("openai_privacy_filter")
def openai_privacy_filter(fields: Fields) -> Architecture:
    """A classifier of tokens: each sees sliding_window tokens on either side, and gets a score for each label.

    Source: OpenAI 2026, Privacy Filter (release).
    """
    layers, d_model = num_layers(fields), fields.size("hidden_size")
    experts = read_experts(fields, "num_local_experts", "num_experts")
    fields.get("num_key_value_heads", null=None)  # absent it would be 2; null is one for every head
    heads, kv_heads, head_dim = read_heads(fields, kv_heads=None)
    bias = fields.flag("attention_bias", True)
    attention = grouped_query_attention(
        d_model,
        heads,
        kv_heads,
        head_dim,
        qkv_bias=bias,
        output_bias=bias,
        window=fields.size("sliding_window") + 1,
        causal=False,
    )
    layer = [
        *pre_norms(fields),
        *(replace(part, cached=0) if isinstance(part, Attention) else part for part in attention),
        Weight("attention", (heads,), use="scale"),
        *routed_experts(d_model, fields.size("intermediate_size"), *experts, bias=True, router_bias=True),
    ]
    names = fields.get("id2label", default=None)
    if names is not None and not (isinstance(names, dict) and names):
        raise TypeError(f"{fields.name('id2label')} must name one label or more by their numbers, got {names!r:.80}")
    labels = fields.size("num_labels") if names is None else len(names)
    parts = [
        *embedding(fields.size("vocab_size"), d_model),
        *(part for _ in range(layers) for part in layer),
        *norm(d_model),
        *linear("output", d_model, labels, bias=fields.flag("token_classification_bias", True)),
    ]
    remark = "a token in the middle sees both sides: FLOPs a token are those of the last one, which has no other side"
    return Architecture(str(fields.kind), tuple(parts), d_model, layers, layers, *experts, (remark,))
