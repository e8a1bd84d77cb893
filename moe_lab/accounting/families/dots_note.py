"""Dots 3 Note: latent attention to chosen tokens in some layers and to a window, by other sizes, in the others."""

from collections.abc import Sequence
from dataclasses import replace

from moe_lab.accounting.blocks import linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    layer_kinds,
    num_layers,
    pre_norms,
    read_experts,
    read_latent_attention,
    read_sparse,
)
from moe_lab.accounting.families.shared_choice import CACHE
from moe_lab.accounting.families.sparse_attention import indexer
from moe_lab.accounting.families.vision import text_only
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Attention, Part

LAYER_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "v_head_dim",
    "qk_rope_head_dim",
    "attention_bias",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
)
"""What a layer of dots3_note may have for itself."""


def layer_fields(fields: Fields, number: int, kind: str) -> Fields:
    """The fields as one layer reads them: by per_layer_config, or else by those whose names begin with swa_."""
    own: dict = {}
    if fields.get("per_layer_config", default=None) is not None:
        layers = fields.inner("per_layer_config")
        name = number if number in layers.values else str(number)
        own = dict(layers.inner(name).values) if layers.values.get(name) is not None else {}
    elif kind == "sliding_attention":
        for name in LAYER_FIELDS[:6]:
            own[name] = fields.get(f"swa_{name}")
        turned = fields.size("swa_head_dim") - fields.size("swa_qk_nope_head_dim")
        own["qk_rope_head_dim"] = fields.get("swa_qk_rope_head_dim", default=turned)
    return Fields({**fields.values, **{name: own[name] for name in LAYER_FIELDS if name in own}})


def dots_attention(fields: Fields, kind: str) -> list[Part]:
    """Latent attention with a gate for each head and a norm for the rotary key; chosen tokens, a window, or all."""
    d_model, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    fields.choice("num_key_value_heads", (heads,), null=heads)
    chosen = fields.size("index_topk") if kind == "indexed_attention" else None
    latent = read_latent_attention(fields, query_rank=fields.size("q_lora_rank"), chosen=chosen)
    window = fields.size("sliding_window", "sliding_window_size") if kind == "sliding_attention" else None
    return [
        *(replace(part, window=window) if isinstance(part, Attention) else part for part in latent),
        *norm(fields.size("qk_rope_head_dim")),
        *linear("attention", d_model, heads),
        *(indexer(fields) if kind == "indexed_attention" else []),
    ]


def read_kinds(fields: Fields, layers: int) -> Sequence[str]:
    """The attention of each layer: by layer_types, or else the usual pattern; use_dsa says whether "full" is chosen."""
    words = ("full_attention", "indexed_attention", "sliding_attention")
    slides = fields.flag("use_sliding_window", True)
    pattern = tuple(words[0 if not slides or n < 2 or n % 4 == 1 else 2] for n in range(layers))
    kinds = layer_kinds(fields, layers, words, default=pattern)
    if kinds is not pattern and fields.get("per_layer_config", default=None) is not None:
        return kinds
    old, new = words[:2] if fields.flag("use_dsa", True) else words[1::-1]
    return [new if kind == old else kind for kind in kinds]


@family("dots3_note_text")
def dots3_note(fields: Fields) -> Architecture:
    """Routed experts beside shared ones of their own width, after first_k_dense_replace dense layers.

    Source: rednote-hilab 2026, dots3 release.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts", "num_experts")
    names = ("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size")
    fields.choice("moe_layer_freq", (1,), default=1)
    which = read_sparse(fields, layers, dense_first=1)
    networks = {
        True: [
            *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
            *mlp("shared_experts", d_model, fields.size(*names) * fields.size("n_shared_experts")),
        ],
        False: mlp("dense_mlp", d_model, fields.size("intermediate_size")),
    }
    blocks = [
        [*pre_norms(fields), *dots_attention(layer_fields(fields, number, kind), kind), *networks[which[number]]]
        for number, kind in enumerate(read_kinds(fields, layers))
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), remarks=(CACHE,))


family("dots3_note")(text_only("vision_config", "its tower has experts too, and beside it another one hears"))
