"""Step-3.5 and 3.7: gated attention whose windowed layers have heads of their own number, dense layers first."""

from collections.abc import Mapping

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
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part, Weight
from moe_lab.checks import check_number, check_whole


@family("step3p5")
def step3p5(fields: Fields) -> Architecture:
    """Layers with a window may have more heads; each head of attention is gated.

    Source: StepFun 2026, Step-3.7-Flash (release).
    """
    no_default_for_tying(fields)
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    fields = without_the_next_tokens_layers(fields, layers)
    fields.choice("gating", (True, "per-head"), default=True)
    experts = read_experts(
        fields, "n_routed_experts", "moe_num_experts", "num_local_experts", top_k=("num_experts_per_tok", "moe_top_k")
    )
    bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    kinds = fields.per_layer("layer_types", layers, ("sliding_attention", "full_attention"), default=None)
    kinds = kinds or ["full_attention"] * layers
    which = read_which_sparse(fields, layers)
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *mlp("shared_experts", d_model, fields.size("share_expert_dim", "share_expert_dims"), bias=mlp_bias),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"), bias=mlp_bias)
    blocks: list[list[Part]] = []
    for kind, heads, has in zip(kinds, read_heads_of_layers(fields, kinds), which, strict=True):
        layer = Fields(
            {
                **fields.values,
                "num_attention_heads": heads,
                "num_key_value_heads": fields.size("num_key_value_heads", "num_attention_groups"),
            },
            fields.inside,
        )
        window = fields.size("sliding_window") if kind == "sliding_attention" else None
        attention = read_attention(
            layer, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias, qk_norm="head", window=window
        )
        gate = linear("attention", d_model, heads)
        blocks.append([*pre_norms(fields), *attention, *gate, *(sparse if has else dense)])
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


def without_the_next_tokens_layers(fields: Fields, layers: int) -> Fields:
    """Released lists also name the layers that predict further tokens, which are not counted."""
    extra = fields.size("num_nextn_predict_layers", "num_mtp_layers", default=0, low=0)
    values = dict(fields.values)
    for name in ("layer_types", "mlp_layer_types"):
        listed = fields.entries(name, default=None)
        if listed is not None and len(listed) == layers + extra:
            values[name] = listed[:layers]
    return Fields(values, fields.inside)


def read_which_sparse(fields: Fields, layers: int) -> list[bool]:
    """mlp_layer_types, or the numbers in moe_layers_enum, as a list or one string; by default all but the first 3."""
    kinds = fields.per_layer("mlp_layer_types", layers, ("dense", "sparse"), default=None)
    if kinds is not None:
        return [kind == "sparse" for kind in kinds]
    listed = fields.get("moe_layers_enum", default=range(3, layers))
    if isinstance(listed, str):
        listed = [int(number) if number.strip().isdecimal() else number for number in listed.split(",")]
    elif not isinstance(listed, list | tuple | range):
        raise TypeError(f"{fields.name('moe_layers_enum')} must be a list of layers, got {listed!r:.80}")
    chosen = {check_whole(fields.name("moe_layers_enum"), number, 0) for number in listed}
    return [number in chosen for number in range(layers)]


def read_heads_of_layers(fields: Fields, kinds: list[str]) -> list[int]:
    """num_attention_heads, and what per_layer_config or num_sliding_attention_heads say of layers with a window."""
    heads = fields.size("num_attention_heads")
    if fields.get("per_layer_config", default=None) is not None:
        inner = fields.inner("per_layer_config")
        by_layer = {}
        for number, change in inner.values.items():
            if not str(number).isdecimal() or not isinstance(change, Mapping) or set(change) > {"num_attention_heads"}:
                raise ValueError(f"{inner.inside} may say num_attention_heads of a layer, got {number!r}: {change!r}")
            by_layer[int(number)] = check_whole(inner.inside, change.get("num_attention_heads", heads), 1)
        return [by_layer.get(number, heads) for number in range(len(kinds))]
    other = heads
    if fields.get("attention_other_setting", default=None) is not None:
        other = fields.inner("attention_other_setting").size("num_attention_heads", default=heads)
    other = fields.size("num_sliding_attention_heads", default=other)
    return [other if kind == "sliding_attention" else heads for kind in kinds]


@family("step3p7")
def step3p7(fields: Fields) -> Architecture:
    """The whole: a ViT with a scale behind each part of a layer, and two convolutions that halve the image's sides.

    Source: StepFun 2026, Step-3.7-Flash (release).
    """
    vision, d_model = fields.inner("vision_config"), fields.inner("text_config").size("hidden_size")
    width = vision_width(vision)
    ratio = check_number(vision.name("mlp_ratio"), vision.get("mlp_ratio"), above=0)
    layer = [*vision_layer(vision, int(width * ratio)), Weight("vision", (width,), 2, use="scale")]
    tower = [
        *patches(vision, bias=False, positions=grid(vision)),
        *norm(width, bias=True),
        *layer * vision_depth(vision),
        *linear("vision", 9 * width, 2 * width, bias=True),
        *linear("vision", 18 * width, 4 * width, bias=True),
        *linear("vision", 4 * width, d_model, bias=fields.flag("projector_bias", False)),
    ]
    return with_vision(fields, step3p5, tower, tied=False)
