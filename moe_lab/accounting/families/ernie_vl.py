"""ERNIE 4.5 VL: in each layer text tokens have experts of their own, and so have image tokens."""

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
    no_default_for_tying,
    patches,
    vision_depth,
    vision_layer,
    vision_width,
    with_vision,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Part, Weight, on_stream
from moe_lab.checks import check_whole


@family("ernie4_5_vl_moe_text")
def ernie4_5_vl_moe_text(fields: Fields) -> Architecture:
    """moe_intermediate_size is two widths: of the experts of text tokens (and the shared ones), of those of images.

    Source: Baidu 2025, ERNIE 4.5 Technical Report, section 2.
    """
    no_default_for_tying(fields)
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "moe_num_experts", "num_experts", top_k=("moe_k", "num_experts_per_tok"))
    bias = fields.flag("use_bias", False)
    widths = fields.entries("moe_intermediate_size")
    if len(widths) != 2:
        raise ValueError(f"{fields.name('moe_intermediate_size')} must hold 2 widths, got {widths!r}")
    of_text, of_images = (check_whole(fields.name("moe_intermediate_size"), width, 1) for width in widths)
    shared = fields.size("moe_num_shared_experts", low=0)
    kinds = fields.per_layer("mlp_layer_types", layers, ("dense", "sparse"), default=None)
    kinds = kinds or ["dense", *["sparse"] * (layers - 1)]
    rest = [*pre_norms(fields), *read_attention(fields, qkv_bias=bias, output_bias=bias)]
    sparse = [
        *experts_of_one_kind(d_model, of_text, experts),
        *on_stream(experts_of_one_kind(d_model, of_images, experts), "image"),
        *(mlp("shared_experts", d_model, of_text * shared, bias=bias) if shared else []),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"), bias=bias)
    blocks = [[*rest, *(sparse if kind == "sparse" else dense)] for kind in kinds]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=kinds.count("sparse"),
        remarks=("experts of image tokens are among all parameters, and not among those that a text token uses",),
    )


def experts_of_one_kind(d_model: int, d_expert: int, experts: tuple[int, int]) -> list[Part]:
    """A router whose choice, but not its weights, a bias for each expert shifts; and its experts."""
    return [
        *routed_experts(d_model, d_expert, *experts),
        Weight("router", (experts[0],), use="scale"),
    ]


@family("ernie4_5_vl_moe")
def ernie4_5_vl_moe(fields: Fields) -> Architecture:
    """The whole: a ViT, and a resampler that merges patches, then frames.

    Source: Baidu 2025, ERNIE 4.5 Technical Report, section 2.
    """
    vision, text = fields.inner("vision_config"), fields.inner("text_config")
    width, d_model = vision_width(vision), text.size("hidden_size")
    merged = width * vision.size("spatial_merge_size") ** 2
    layer = vision_layer(vision, vision.size("intermediate_size"))
    tower = [
        *patches(vision, bias=False),
        *(layer * vision_depth(vision)),
        *norm(width, bias=True),
    ]
    for d_in in (merged, merged * vision.size("temporal_merge_size")):
        tower += [
            *linear("vision", d_in, merged, bias=True),
            *linear("vision", merged, merged, bias=True),
            *norm(merged, bias=True),
        ]
    tower += [*linear("vision", merged, d_model, bias=True), *norm(d_model)]
    return with_vision(fields, ernie4_5_vl_moe_text, tower, tied=True)
