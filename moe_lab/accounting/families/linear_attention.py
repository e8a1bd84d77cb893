"""Hybrids of attention and linear attention or short convolutions, with experts: Qwen's, MiniMax's, Liquid AI's."""

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.mamba import SCAN
from moe_lab.accounting.families.qwen import sparse_layers
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    layer_kinds,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_heads,
)
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part
from moe_lab.accounting.recurrent import causal_convolution, gated_delta_net, linear_state


def read_gated_delta_net(fields: Fields) -> list[Part]:
    """Gated DeltaNet from Qwen3-Next's fields."""
    keys, values = fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads")
    if values % keys:
        raise ValueError(f"linear_num_key_heads must divide linear_num_value_heads={values}, got {keys}")
    return gated_delta_net(
        fields.size("hidden_size"),
        keys,
        values,
        fields.size("linear_key_head_dim"),
        fields.size("linear_value_head_dim"),
        fields.size("linear_conv_kernel_dim"),
    )


def read_gated_attention(fields: Fields) -> list[Part]:
    """Attention whose output a gate multiplies, as wide as the queries and made beside them."""
    bias = fields.flag("attention_bias", False)
    heads, _, width = read_heads(fields, head_dim=REQUIRED)
    return [
        *read_attention(fields, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias, qk_norm="head"),
        *linear("attention", fields.size("hidden_size"), heads * width, bias=bias),
    ]


def gated_shared_expert(fields: Fields, experts: tuple[int, int]) -> list[Part]:
    """Routed experts, and a shared one with a gate of one number."""
    d_model = fields.size("hidden_size")
    return [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *mlp("shared_experts", d_model, fields.size("shared_expert_intermediate_size")),
        *linear("shared_experts", d_model, 1),
    ]


@family("qwen3_next", "qwen3_5_moe_text")
def qwen3_next(fields: Fields) -> Architecture:
    """Gated attention in every full_attention_interval-th layer, Gated DeltaNet in the others.

    Source: Qwen team 2025, Qwen3-Next release; Gated DeltaNet: Yang et al. 2024 (arXiv:2412.06464).
    """
    layers = num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    interval = fields.size("full_attention_interval", default=4)
    words = ("linear_attention", "full_attention")
    kinds = layer_kinds(
        fields, layers, words, default=tuple(words[(number + 1) % interval == 0] for number in range(layers))
    )
    which = sparse_layers(fields, layers) if fields.kind == "qwen3_next" else [True] * layers
    mixers = {"linear_attention": read_gated_delta_net(fields), "full_attention": read_gated_attention(fields)}
    sparse = gated_shared_expert(fields, experts)
    dense = [] if all(which) else mlp("dense_mlp", fields.size("hidden_size"), fields.size("intermediate_size"))
    blocks = [
        [*pre_norms(fields), *mixers[kind], *(sparse if has else dense)] for kind, has in zip(kinds, which, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), remarks=SCAN)


@family("minimax")
def minimax(fields: Fields) -> Architecture:
    """Lightning attention, a linear one with a fixed decay a head, between layers of softmax attention.

    Source: MiniMax 2025, MiniMax-01 (arXiv:2501.08313), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_local_experts", "num_experts")
    words = ("full_attention", "linear_attention")
    if fields.get("layer_types", default=None) is None:
        fields.refuse("attn_type_list", "Transformers does not read it; say the same in layer_types", (None,))
    kinds = layer_kinds(fields, layers, words, default=tuple(words[number % 2] for number in range(layers)))
    heads, _, width = read_heads(fields)
    lightning = [
        *linear("recurrent", d_model, 3 * heads * width),
        *linear_state(heads, width, width),
        *norm(heads * width),
        *linear("recurrent", d_model, heads * width),
        *linear("recurrent", heads * width, d_model),
    ]
    mixers = {
        "linear_attention": lightning,
        "full_attention": read_attention(fields, window=fields.size("sliding_window", default=None)),
    }
    sparse = routed_experts(d_model, fields.size("intermediate_size"), *experts)
    blocks = [[*pre_norms(fields), *mixers[kind], *sparse] for kind in kinds]
    return decoder(fields, blocks, experts=experts, moe_layers=layers, remarks=SCAN)


@family("lfm2_moe")
def lfm2_moe(fields: Fields) -> Architecture:
    """Short gated convolutions between layers of attention; num_dense_layers come first, experts after them.

    Source: Liquid AI 2025, LFM2-8B-A1B release.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    kinds = layer_kinds(fields, layers, ("conv", "full_attention"))
    first = fields.size("num_dense_layers", low=0, high=layers)
    bias = fields.flag("conv_bias", False)
    mixers = {
        "conv": [
            *linear("recurrent", d_model, 3 * d_model, bias=bias),
            *causal_convolution(d_model, fields.size("conv_L_cache"), bias=bias),
            *linear("recurrent", d_model, d_model, bias=bias),
        ],
        "full_attention": read_attention(fields, qk_norm="head"),
    }
    sparse = routed_experts(d_model, fields.size("moe_intermediate_size"), *experts)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = [
        [*pre_norms(fields), *mixers[kind], *(dense if number < first else sparse)] for number, kind in enumerate(kinds)
    ]
    tied = fields.flag("tie_embedding", fields.flag("tie_word_embeddings", True))
    fields.choice("tie_word_embeddings", (tied,), default=tied)
    return decoder(fields, blocks, experts=experts, moe_layers=layers - first, tied=tied)
