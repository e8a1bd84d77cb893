"""Tencent's Hunyuan: grouped queries with norms of each head, and shared experts beside the routed ones."""

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
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture


def same_in_all_layers(fields: Fields, name: str) -> Fields:
    """The fields with one number in place of a list that repeats it for each layer."""
    value = fields.get(name, default=None)
    if not isinstance(value, list | tuple) or not value:
        return fields
    if any(entry != value[0] for entry in value):
        raise ValueError(f"{fields.name(name)} must be the same in every layer to be counted, got {value!r:.80}")
    return Fields({**fields.values, name: value[0]}, fields.inside)


@family("hunyuan_v1_moe")
def hunyuan_v1_moe(fields: Fields) -> Architecture:
    """One shared expert of the routed ones' width, intermediate_size, in every layer.

    Source: Tencent 2025, Hunyuan-A13B Technical Report.
    """
    for name in ("moe_topk", "num_experts", "moe_intermediate_size", "num_shared_expert"):
        fields = same_in_all_layers(fields, name)
    d_model, d_expert, layers = fields.size("hidden_size"), fields.size("intermediate_size"), num_layers(fields)
    fields.refuse("moe_intermediate_size", "experts are of intermediate_size", harmless=(None, d_expert))
    fields.refuse("num_shared_expert", "every layer has one shared expert", harmless=(None, 1))
    fields.refuse("moe_layer_num_skipped", "every layer has experts", harmless=(None, 0))
    fields.refuse("use_cla", "layers that share keys and values are not covered")
    fields.refuse("use_qk_norm", "queries and keys are normalised", harmless=(None, True))
    experts = read_experts(fields, "num_experts", "num_local_experts", top_k=("moe_topk", "num_experts_per_tok"))
    bias = fields.flag("attention_bias", False)
    layer = [
        *pre_norms(fields),
        *read_attention(fields, head_dim=REQUIRED, kv_heads=None, qkv_bias=bias, output_bias=bias, qk_norm="head"),
        *routed_experts(d_model, d_expert, *experts),
        *mlp("shared_experts", d_model, d_expert),
    ]
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers)


@family("hy_v3")
def hy_v3(fields: Fields) -> Architecture:
    """The first layer is dense unless the config says otherwise; mlp_bias does not reach the routed experts.

    Source: Tencent 2026, Hy3 (release).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    which = read_sparse(fields, layers, dense_first=1)
    rest = [
        *pre_norms(fields),
        *read_attention(fields, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias, qk_norm="head"),
    ]
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        # None at all is refused: the reference then builds a shared expert as wide as a dense layer.
        *read_shared_experts(fields, "num_shared_experts", bias=mlp_bias, low=1),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"), bias=mlp_bias)
    blocks = [[*rest, *(sparse if has else dense)] for has in which]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))
