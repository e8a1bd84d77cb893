"""Aria: every layer has routed and shared experts; learned queries look at an image's patches."""

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
    patches,
    table,
    vision_depth,
    vision_layer,
    vision_width,
    with_vision,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture
from moe_lab.checks import check_whole


@family("aria_text")
def aria_text(fields: Fields) -> Architecture:
    """moe_num_experts routed experts and moe_num_shared_experts shared ones, all of intermediate_size.

    Source: Li et al. 2024 (arXiv:2410.05993), section 2.1.
    """
    d_model, layers, width = fields.size("hidden_size"), num_layers(fields), fields.size("intermediate_size")
    experts = read_experts(fields, "moe_num_experts", top_k=("moe_topk",))
    bias, shared = fields.flag("attention_bias", False), fields.size("moe_num_shared_experts", low=0)
    mlp_bias = fields.flag("mlp_bias", False)
    if not shared:
        fields.refuse("mlp_bias", "a bias of no shared experts")
    layer = [
        *pre_norms(fields),
        *read_attention(fields, qkv_bias=bias, output_bias=bias),
        *routed_experts(d_model, width, *experts),
        *(mlp("shared_experts", d_model, width * shared, bias=mlp_bias) if shared else []),
    ]
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers)


@family("aria")
def aria(fields: Fields) -> Architecture:
    """The whole: a ViT, and as many learned queries as projector_patch_to_query_dict wants at most.

    Source: Li et al. 2024 (arXiv:2410.05993), section 2.2.
    """
    vision, text = fields.inner("vision_config"), fields.inner("text_config")
    vision.choice("model_type", ("idefics3_vision",), default="idefics3_vision")
    width, d_model = vision_width(vision), text.size("hidden_size")
    queries = fields.size("max_value_projector_patch_to_query_dict", default=None)
    if queries is None:
        wanted = fields.inner("projector_patch_to_query_dict")
        queries = check_whole(wanted.inside, max(wanted.values.values(), default=None), 1)
    layer = vision_layer(vision, vision.size("intermediate_size"))
    tower = [
        *patches(vision, bias=True, positions=grid(vision)),
        *(layer * vision_depth(vision)),
        *norm(width, bias=True),
        *table("vision", queries, width),
        *norm(width, bias=True),
        *norm(width, bias=True),
        *(part for _ in range(3) for part in linear("vision", width, width)),
        *(part for _ in range(5) for part in linear("vision", width, width, bias=True)),
        *norm(width, bias=True),
        *linear("vision", width, d_model),
        *linear("vision", d_model, d_model),
    ]
    return with_vision(fields, aria_text, tower, tied=False)
