"""GLM-4.5V: grouped-query attention, dense layers first, and a tower whose layers are gated."""

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
)
from moe_lab.accounting.families.vision import (
    grid,
    no_default_for_tying,
    patches,
    vision_depth,
    vision_layer,
    vision_width,
    with_vision,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


@family("glm4v_moe_text")
def glm4v_moe_text(fields: Fields) -> Architecture:
    """first_k_dense_replace dense layers, then routed experts beside n_shared_experts that every token uses.

    Source: GLM-4.5V and GLM-4.1V-Thinking (arXiv:2507.01006), section 2.
    """
    no_default_for_tying(fields)
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    d_expert, shared = fields.size("moe_intermediate_size"), fields.size("n_shared_experts", low=0)
    first = fields.size("first_k_dense_replace", low=0, high=layers)
    rest = [*pre_norms(fields), *read_attention(fields, qkv_bias=fields.flag("attention_bias", True))]
    sparse = [
        *routed_experts(d_model, d_expert, *experts),
        *(mlp("shared_experts", d_model, d_expert * shared) if shared else []),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = [[*rest, *(dense if number < first else sparse)] for number in range(layers)]
    return decoder(fields, blocks, experts=experts, moe_layers=layers - first)


@family("glm4v_moe")
def glm4v_moe(fields: Fields) -> Architecture:
    """The whole: the tower's feed-forward networks are as wide as out_hidden_size, the merger as intermediate_size.

    Source: GLM-4.5V and GLM-4.1V-Thinking (arXiv:2507.01006), section 2.
    """
    vision = fields.inner("vision_config")
    width, out = vision_width(vision), vision.size("out_hidden_size")
    qkv_bias = vision.flag("attention_bias", False)
    layer = vision_layer(vision, out, qkv_bias=qkv_bias, output_bias=False, mlp_bias=False, gated=True, norm_bias=False)
    tower = [
        *patches(vision, bias=True, frames=vision.size("temporal_patch_size"), positions=grid(vision)),
        *norm(width),
        *(layer * vision_depth(vision)),
        *norm(width),
        *linear("vision", width * vision.size("spatial_merge_size") ** 2, out, bias=True),
        *linear("vision", out, out),
        *norm(out, bias=True),
        *mlp("vision", out, vision.size("intermediate_size")),
    ]
    return with_vision(fields, glm4v_moe_text, tower, tied=False, text_may_tie=True)
