"""Gemma 4: experts beside a dense network in each layer, wider heads where attention is over all tokens."""

from collections.abc import Mapping

from moe_lab.accounting.blocks import grouped_query_attention, linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import decoder, family, layer_kinds, num_layers, read_experts, read_heads
from moe_lab.accounting.families.vision import patches, table, vision_depth, vision_width, with_vision
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Attention, Part, Weight
from moe_lab.checks import check_whole


@family("gemma4_text")
def gemma4_text(fields: Fields) -> Architecture:
    """Every layer is dense; with enable_moe_block routed experts are added to what the dense network gives.

    The last num_kv_shared_layers take keys and values from the last layer of their kind before them.
    Source: Google DeepMind 2026, Gemma 4 (release).
    """
    d_model, layers, hidden = fields.size("hidden_size"), num_layers(fields), fields.size("intermediate_size")
    fields.refuse("use_bidirectional_attention", "its window is on both sides", (None, "vision"))
    kinds = read_kinds(fields, layers)
    shared = fields.size("num_kv_shared_layers", default=0, low=0, high=layers - 1)
    own = layers - shared
    if set(kinds[:own]) != set(kinds):
        raise ValueError(f"{fields.name('num_kv_shared_layers')}={shared} leaves a kind of layer without keys")
    wider = 2 if fields.flag("use_double_wide_mlp", False) else 1
    moe = fields.flag("enable_moe_block", False)
    experts = read_experts(fields, "num_experts", top_k=("top_k_experts",)) if moe else (0, 0)
    per_layer = fields.size("hidden_size_per_layer_input", low=0)
    sparse = (
        [
            *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
            Weight("router", (d_model,), use="scale"),
            Weight("router", (experts[0],), use="scale"),
            *norm(d_model) * 3,
        ]
        if moe
        else []
    )
    blocks = [
        [
            *norm(d_model) * 4,
            *gemma4_attention(fields, layer, kind, shared=number >= own),
            *mlp("dense_mlp", d_model, hidden * (wider if number >= own else 1)),
            *sparse,
            *(per_layer_input(d_model, per_layer) if per_layer else []),
        ]
        for number, (kind, layer) in enumerate(zip(kinds, read_layers(fields, kinds), strict=True))
    ]
    more = inputs_for_all_layers(fields, layers * per_layer, per_layer) if per_layer else []
    return decoder(fields, blocks, experts=experts, moe_layers=layers * moe, tied=True, more=more)


def read_kinds(fields: Fields, layers: int) -> list[str]:
    """By default every sixth layer attends to all tokens; the last one always does."""
    default = ["full_attention" if (number + 1) % 6 == 0 else "sliding_attention" for number in range(layers)]
    kinds = layer_kinds(fields, layers, ("sliding_attention", "full_attention"), default=default)
    return [*kinds[:-1], "full_attention"]


def read_layers(fields: Fields, kinds: list[str]) -> list[Fields]:
    """The fields of each layer: per_layer_config says what differs, or global_head_dim for the layers that see all."""
    given = fields.get("per_layer_config", default=None)
    if given is None:
        wide = {"head_dim": fields.size("global_head_dim")}
        kv_heads = fields.size("num_global_key_value_heads", default=None)
        if kv_heads is not None and fields.flag("attention_k_eq_v", False):
            wide["num_key_value_heads"] = kv_heads
        changes: dict[int, Mapping] = {n: wide for n, kind in enumerate(kinds) if kind == "full_attention"}
    else:
        inner = fields.inner("per_layer_config")
        changes = {}
        for number, change in inner.values.items():
            if not str(number).isdecimal() or not isinstance(change, Mapping):
                raise ValueError(
                    f"{inner.inside} must say by a layer's number what differs, got {number!r}: {change!r}"
                )
            for name in set(change) - {"head_dim", "num_key_value_heads"}:
                raise ValueError(f"{inner.inside}.{number}.{name} is not counted: it is not known to differ by layer")
            changes[check_whole(inner.inside, int(number), 0, len(kinds) - 1)] = change
    return [Fields({**fields.values, **changes.get(n, {})}, fields.inside) for n in range(len(kinds))]


def gemma4_attention(fields: Fields, layer: Fields, kind: str, *, shared: bool) -> list[Part]:
    """Queries and keys normalised head by head; with attention_k_eq_v values are the keys where all tokens are seen."""
    d_model, bias = fields.size("hidden_size"), fields.flag("attention_bias", False)
    heads, kv_heads, head_dim = read_heads(layer, head_dim=REQUIRED)
    full = kind == "full_attention"
    window = None if full else fields.size("sliding_window")
    keys = linear("attention", d_model, kv_heads * head_dim, bias=bias)
    if shared:
        made, cached = [], 0
    else:
        made = [*keys, *([] if full and fields.flag("attention_k_eq_v", False) else keys), *norm(head_dim)]
        cached = 2 * kv_heads * head_dim
    return [
        *linear("attention", d_model, heads * head_dim, bias=bias),
        *norm(head_dim),
        *made,
        *linear("attention", heads * head_dim, d_model, bias=bias),
        Attention(heads, head_dim, head_dim, cached, window=window),
    ]


def per_layer_input(d_model: int, width: int) -> list[Part]:
    """What a layer adds from the input that is its alone: a gate, and a projection back."""
    return [*linear("dense_mlp", d_model, width), *linear("dense_mlp", width, d_model), *norm(d_model)]


def inputs_for_all_layers(fields: Fields, total: int, width: int) -> list[Part]:
    """A second embedding, hidden_size_per_layer_input numbers for each layer, and the same from the first one."""
    return [
        *table("embedding", fields.size("vocab_size_per_layer_input"), total),
        *linear("dense_mlp", fields.size("hidden_size"), total),
        *norm(width),
    ]


@family("gemma4")
def gemma4(fields: Fields) -> Architecture:
    """The whole with the tower that sees images; one that hears as well is refused.

    Source: Google DeepMind 2026, Gemma 4 (release).
    """
    fields.refuse("audio_config", "the tower that hears is of another kind; count text_config instead", (None,))
    if fields.get("vision_config", default=None) is None:
        return with_vision(fields, gemma4_text, [], tied=True)
    vision = fields.inner("vision_config")
    width = vision_width(vision)
    heads, kv_heads, head_dim = read_heads(vision, head_dim=REQUIRED)
    layer = [
        *norm(width) * 4,
        *grouped_query_attention(width, heads, kv_heads, head_dim, causal=False),
        *norm(head_dim) * 2,
        *mlp("vision", width, vision.size("intermediate_size")),
    ]
    colours = Fields({"num_channels": 3, **vision.values}, vision.inside)
    tower = [
        *patches(colours, bias=False, positions=2 * vision.size("position_embedding_size")),
        *layer * vision_depth(vision),
        *linear("vision", width, fields.inner("text_config").size("hidden_size")),
    ]
    return with_vision(fields, gemma4_text, tower, tied=True)
