"""What families that also see images share: the tower over the patches, and the whole made of it and the text part.

The tower's parts are on the stream "image" and in the component "vision": they count as parameters, and not as what a
text token uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from moe_lab.accounting.blocks import grouped_query_attention, linear, mlp, norm
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Part, Weight, on_stream


def vision_layer(
    fields: Fields,
    hidden: int,
    *,
    qkv_bias: bool = True,
    output_bias: bool = True,
    mlp_bias: bool = True,
    gated: bool = False,
    norm_bias: bool = True,
) -> list[Part]:
    """One layer over patches, each of which attends to all; by default with the biases of a ViT.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929), section 3.1.
    """
    width, heads = vision_width(fields), fields.size("num_heads", "heads", "num_attention_heads")
    if width % heads:
        raise ValueError(f"{fields.name('num_heads', 'heads', 'num_attention_heads')} must divide {width}, got {heads}")
    return [
        *norm(width, bias=norm_bias),
        *norm(width, bias=norm_bias),
        *grouped_query_attention(
            width, heads, heads, width // heads, qkv_bias=qkv_bias, output_bias=output_bias, causal=False
        ),
        *mlp("vision", width, hidden, gated=gated, bias=mlp_bias),
    ]


def vision_width(fields: Fields) -> int:
    """Channels of a patch."""
    return fields.size("width", "hidden_size")


def vision_depth(fields: Fields) -> int:
    """Layers of a tower."""
    return fields.size("depth", "layers", "num_hidden_layers", high=10_000)


def patches(fields: Fields, *, bias: bool, frames: int = 1, positions: int = 0) -> list[Part]:
    """The layer that makes a vector of a patch (of so many ``frames`` of a video), and a table of positions."""
    width = vision_width(fields)
    pixels = fields.size("in_channels", "num_channels") * fields.size("patch_size") ** 2 * frames
    return [*linear("vision", pixels, width, bias=bias), *table("vision", positions, width)]


def table(component: str, rows: int, width: int) -> list[Part]:
    """Learned vectors, of which each token reads one; none for 0 rows."""
    return [Weight(component, (rows, width), use="lookup")] if rows else []


def grid(fields: Fields) -> int:
    """Positions of a square image, one a patch."""
    side = fields.size("image_size") // fields.size("patch_size")
    if not side:
        raise ValueError(f"{fields.name('patch_size')} must be at most image_size={fields.size('image_size')}")
    return side**2


def no_default_for_tying(fields: Fields) -> None:
    """Of a text config on its own: whether its projection is tied the whole config says, so a guess may be wrong."""
    fields.get("tie_word_embeddings")


def with_vision(
    fields: Fields,
    read_text: Callable[[Fields], Architecture],
    vision: Sequence[Part],
    *,
    tied: bool,
    text_may_tie: bool = False,
) -> Architecture:
    """The text part that ``text_config`` describes, and what sees images.

    ``tied`` is the whole's default for ``tie_word_embeddings``; with ``text_may_tie`` the text config's counts too.
    """
    text = fields.inner("text_config")
    tie = fields.flag("tie_word_embeddings", tied) or (text_may_tie and text.flag("tie_word_embeddings", False))
    architecture = read_text(Fields({**text.values, "tie_word_embeddings": tie}, text.inside))
    parts = (*architecture.parts, *on_stream(vision, "image", "vision"))
    return replace(architecture, model_type=str(fields.kind), parts=parts)


def text_only(field: str, why: str, text: str = "text_config") -> Callable[[Fields], Architecture]:
    """The reader of a family whose whole is not counted; it says what can be."""

    def refuse(fields: Fields) -> Architecture:
        """Refuse the whole and name the part that can be counted; the part's reader has the source."""
        raise ValueError(f"{field} of a {fields.kind} config is not counted ({why}); count its {text} instead")

    return refuse
