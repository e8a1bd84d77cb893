"""MiniMax-M3: attention to chosen blocks of tokens, experts of one width beside a shared one of another."""

from dataclasses import replace

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    layer_kinds,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
)
from moe_lab.accounting.families.vision import patches, vision_depth, vision_layer, vision_width, with_vision
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Attention, Part

FIRST_NAMES = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
}
"""What the released config calls a field, in its sparse_attention_config."""


@family("minimax_m3_vl_text")
def minimax_m3_vl_text(fields: Fields) -> Architecture:
    """Experts of intermediate_size, one shared of shared_intermediate_size, dense layers of dense_intermediate_size.

    Source: MiniMax 2026, MiniMax-M3 (release).
    """
    fields = with_flat_names(fields)
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_local_experts", "num_experts")
    kinds = layer_kinds(fields, layers, ("minimax_m3_sparse", "full_attention"), default=["full_attention"] * layers)
    which = fields.per_layer("mlp_layer_types", layers, ("dense", "sparse"), default=["sparse"] * layers)
    sparse = [
        *routed_experts(d_model, fields.size("intermediate_size"), *experts),
        *mlp("shared_experts", d_model, fields.size("shared_intermediate_size")),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("dense_intermediate_size")) if "dense" in which else []
    full = read_attention(fields, head_dim=REQUIRED, qk_norm="head")
    chosen = chosen_blocks(fields, full) if "minimax_m3_sparse" in kinds else []
    blocks = [
        [
            *pre_norms(fields),
            *(full if kind == "full_attention" else chosen),
            *(sparse if has == "sparse" else dense),
        ]
        for kind, has in zip(kinds, which, strict=True)
    ]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=which.count("sparse"),
        remarks=("attention to chosen blocks is counted as if each of them were full",) if chosen else (),
    )


def with_flat_names(fields: Fields) -> Fields:
    """The fields of a released config under the names that Transformers gives them."""
    values = dict(fields.values)
    if fields.get("sparse_attention_config", default=None) is not None:
        inner = fields.inner("sparse_attention_config")
        values |= {flat: inner.values[first] for flat, first in FIRST_NAMES.items() if first in inner.values}
        which = inner.entries("sparse_attention_freq", default=None)
        if which is not None and values.get("layer_types") is None:
            values["layer_types"] = ["minimax_m3_sparse" if has else "full_attention" for has in which]
    which = fields.entries("moe_layer_freq", default=None)
    if which is not None and values.get("mlp_layer_types") is None:
        values["mlp_layer_types"] = ["sparse" if has else "dense" for has in which]
    return Fields(values, fields.inside)


def chosen_blocks(fields: Fields, full: list[Part]) -> list[Part]:
    """Attention to index_topk_blocks blocks of index_block_size tokens, which a small indexer finds by its scores."""
    d_model, heads, head_dim = fields.size("hidden_size"), fields.size("index_n_heads"), fields.size("index_head_dim")
    tokens = fields.size("index_topk_blocks") * fields.size("index_block_size")
    return [
        *(replace(part, chosen=tokens) if isinstance(part, Attention) else part for part in full),
        *linear("attention", d_model, heads * head_dim),
        *linear("attention", d_model, head_dim),
        *norm(head_dim) * 2,
        Attention(heads, head_dim, 0, head_dim),
    ]


@family("minimax_m3_vl")
def minimax_m3_vl(fields: Fields) -> Architecture:
    """The whole: a ViT, two layers for each patch, and two for spatial_merge_size^2 of them at once.

    Source: MiniMax 2026, MiniMax-M3 (release).
    """
    vision, d_model = fields.inner("vision_config"), fields.inner("text_config").size("hidden_size")
    width, hidden = vision_width(vision), fields.size("projector_hidden_size")
    tower = [
        *patches(vision, bias=False, frames=vision.size("temporal_patch_size")),
        *norm(width, bias=True),
        *vision_layer(vision, vision.size("intermediate_size")) * vision_depth(vision),
    ]
    for d_in in (width, d_model * vision.size("spatial_merge_size") ** 2):
        tower += [*linear("vision", d_in, hidden, bias=True), *linear("vision", hidden, d_model, bias=True)]
    return with_vision(fields, minimax_m3_vl_text, tower, tied=False, text_may_tie=True)
