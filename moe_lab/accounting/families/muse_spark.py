"""Muse Spark: experts in a narrower space than the layer's, gated attention and gated residual connections."""

from moe_lab.accounting.blocks import linear, mlp, norm
from moe_lab.accounting.families.registry import decoder, family, num_layers, read_attention, read_experts, read_windows
from moe_lab.accounting.families.vision import no_default_for_tying, text_only
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part, Weight


@family("muse_spark_text")
def muse_spark_text(fields: Fields) -> Architecture:
    """Routed experts of moe_hidden_size inside: all of them between one projection down and one back up.

    Source: Meta 2026, Muse Spark (release).
    """
    no_default_for_tying(fields)
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    heads, head_dim = fields.size("num_attention_heads"), fields.size("head_dim")
    bias = fields.flag("attention_bias", False)
    experts = read_experts(fields, "num_local_experts", "num_experts")
    which = fields.per_layer("mlp_layer_types", layers, ("dense", "sparse"), default=["sparse"] * layers)
    windows = read_windows(fields, layers, lambda number: (layers - 1 - number) % 4 == 0)
    sparse = narrow_experts(d_model, fields.size("moe_hidden_size"), fields.size("moe_intermediate_size"), experts)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size")) if "dense" in which else []
    blocks = [
        [
            *norm(d_model) * 3,
            Weight("norms", (d_model,), 2, use="scale"),
            *read_attention(fields, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias, window=window),
            *linear("attention", d_model, heads * head_dim),
            *(sparse if has == "sparse" else dense),
        ]
        for window, has in zip(windows, which, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=which.count("sparse"))


def narrow_experts(d_model: int, width: int, hidden: int, experts: tuple[int, int]) -> list[Part]:
    """The router sees the token as it is; a norm is before the experts, and one behind them that they share."""
    num_experts, top_k = experts
    return [
        *linear("router", d_model, num_experts),
        *linear("shared_experts", d_model, width),
        *norm(width),
        *mlp("experts", width, hidden, copies=num_experts, used=top_k),
        *norm(width, component="experts"),
        *linear("shared_experts", width, d_model),
    ]


family("muse_spark")(text_only("audio_config", "the tower that hears is of another kind"))
