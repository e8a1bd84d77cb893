"""Llama 4: one routed and one shared expert a token, attention in chunks, and a tower that sees images."""

from dataclasses import replace

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
)
from moe_lab.accounting.families.vision import grid, patches, vision_depth, vision_layer, vision_width
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, Weight, on_stream


@family("llama4_text")
def llama4_text(fields: Fields) -> Architecture:
    """Every interleave_moe_layer_step-th layer has experts, a shared one beside them; the others are dense.

    In layers with rotary positions a token attends to those of its own chunk only.
    Source: Meta 2025, model card of Llama 4.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_local_experts", "num_experts")
    d_expert = fields.size("intermediate_size")
    step = fields.size("interleave_moe_layer_step", default=1)
    sparse_ones = set(fields.layer_numbers("moe_layers", layers, default=range(step - 1, layers, step)))
    bias = fields.flag("attention_bias", False)
    sparse = [*routed_experts(d_model, d_expert, *experts), *mlp("shared_experts", d_model, d_expert)]
    blocks = []
    for number, chunk in enumerate(attention_chunks(fields, layers)):
        attention = read_attention(fields, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias)
        attention = [replace(part, chunk=chunk) if isinstance(part, Attention) else part for part in attention]
        dense = [] if number in sparse_ones else mlp("dense_mlp", d_model, fields.size("intermediate_size_mlp"))
        blocks.append([*pre_norms(fields), *attention, *(dense or sparse)])
    return decoder(fields, blocks, experts=experts, moe_layers=len(sparse_ones))


def attention_chunks(fields: Fields, layers: int) -> list[int | None]:
    """The chunk of each layer: none in every no_rope_layer_interval-th, whose attention has no positions."""
    size = fields.size("attention_chunk_size", null=None)
    kinds = fields.per_layer("layer_types", layers, ("chunked_attention", "full_attention"), default=None)
    if kinds is None:
        interval = fields.size("no_rope_layer_interval", default=4)
        rotary = fields.entries("no_rope_layers", default=None)
        rotary = rotary or [int((number + 1) % interval != 0) for number in range(layers)]
        if len(rotary) < layers:
            raise ValueError(
                f"{fields.name('no_rope_layers')} must have an entry for each of {layers} layers, got {len(rotary)}"
            )
        kinds = ["chunked_attention" if has else "full_attention" for has in rotary[:layers]]
    return [size if kind == "chunked_attention" else None for kind in kinds]


@family("llama4")
def llama4(fields: Fields) -> Architecture:
    """The text model, and the tower whose patches become tokens; a text token uses the former only.

    Source: Meta 2025, model card of Llama 4.
    """
    tower = fields.inner("vision_config")
    projector = linear("vision", tower.size("vision_output_dim"), fields.inner("text_config").size("hidden_size"))
    text = llama4_text(fields.inner("text_config"))  # which alone says whether the projection is tied
    parts = (*text.parts, *on_stream([*vision_tower(tower), *projector], "image", "vision"))
    return replace(text, model_type="llama4", parts=parts)


def vision_tower(fields: Fields) -> list[Part]:
    """Patches, one token for the class, a position each, layers with biases, and an adapter of 2 linear layers.

    The adapter sees neighbouring patches as one token, which is intermediate_size wide then.
    """
    width, hidden = vision_width(fields), fields.size("intermediate_size")
    out = fields.size("projector_output_dim")
    return [
        *patches(fields, bias=False, positions=grid(fields) + 1),
        Weight("vision", (width,), use="lookup"),
        *norm(width, bias=True),
        *vision_layer(fields, hidden) * vision_depth(fields),
        *norm(width, bias=True),
        *linear("vision", hidden, fields.size("projector_input_dim")),
        *linear("vision", out, out),
    ]
