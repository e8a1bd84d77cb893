"""Qwen's that see: the text part of Qwen3-MoE, a tower over patches, and what merges 2 x 2 of them into one token."""

from moe_lab.accounting.blocks import linear, norm
from moe_lab.accounting.families.linear_attention import qwen3_next
from moe_lab.accounting.families.qwen import qwen3_moe
from moe_lab.accounting.families.registry import family
from moe_lab.accounting.families.vision import (
    no_default_for_tying,
    patches,
    text_only,
    vision_depth,
    vision_layer,
    vision_width,
    with_vision,
)
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Part


@family("qwen3_vl_moe_text", "qwen3_omni_moe_text")
def qwen3_vl_moe_text(fields: Fields) -> Architecture:
    """The layers of Qwen3-MoE. Of Qwen3-Omni it is the text part of the thinker.

    Source: Qwen3-VL Technical Report (arXiv:2511.21631); Qwen3-Omni Technical Report (arXiv:2509.17765).
    """
    no_default_for_tying(fields)
    return qwen3_moe(fields)


@family("qwen3_vl_moe")
def qwen3_vl_moe(fields: Fields) -> Architecture:
    """The whole: also the tower, whose layers in deepstack_visual_indexes have mergers of their own.

    Source: Qwen3-VL Technical Report (arXiv:2511.21631).
    """
    vision = fields.inner("vision_config")
    deep = len(vision.entries("deepstack_visual_indexes"))
    parts = [*qwen3_tower(vision), *(part for _ in range(deep) for part in merger(vision, after_merging=True))]
    return with_vision(fields, qwen3_vl_moe_text, parts, tied=False)


family("qwen3_omni_moe")(
    text_only("thinker_config", "it hears and speaks besides, with towers of other kinds", "thinker_config.text_config")
)


def qwen3_tower(vision: Fields) -> list[Part]:
    """Patches of two frames, learned positions, a ViT's layers, and one merger."""
    layer = vision_layer(vision, vision.size("intermediate_size"))
    return [
        *patches(
            vision,
            bias=True,
            frames=vision.size("temporal_patch_size"),
            positions=vision.size("num_position_embeddings"),
        ),
        *(layer * vision_depth(vision)),
        *merger(vision, after_merging=False),
    ]


def merger(vision: Fields, *, after_merging: bool) -> list[Part]:
    """Two layers over spatial_merge_size^2 patches at once; the norm before them is over each patch, or over all."""
    merged = vision_width(vision) * vision.size("spatial_merge_size") ** 2
    return [
        *norm(merged if after_merging else vision_width(vision), bias=True),
        *linear("vision", merged, merged, bias=True),
        *linear("vision", merged, vision.size("out_hidden_size"), bias=True),
    ]


@family("qwen3_5_moe")
def qwen3_5_moe(fields: Fields) -> Architecture:
    """The whole: the tower of Qwen3-VL without mergers in between.

    Source: Qwen team, Qwen3.5 (release).
    """
    return with_vision(fields, qwen3_next, qwen3_tower(fields.inner("vision_config")), tied=False)


family("qwen3_omni_moe_thinker")(text_only("audio_config", "it hears besides, with a tower of another kind"))
