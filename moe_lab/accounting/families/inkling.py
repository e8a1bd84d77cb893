"""Inkling: windows between layers of full attention, biases made from the query for each distance, and convolutions."""

from collections.abc import Sequence

from moe_lab.accounting.blocks import grouped_query_attention, linear, mlp, norm, routed_experts
from moe_lab.accounting.families.registry import decoder, family, layer_kinds, num_layers, read_experts, read_sparse
from moe_lab.accounting.families.vision import text_only
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture, Part, State, Weight
from moe_lab.accounting.recurrent import causal_convolution

FULL, SLIDING = "hybrid", "hybrid_sliding"


def head_sizes(fields: Fields, kind: str) -> tuple[int, int, int]:
    """(heads, kv_heads, head_dim) of a kind of layer."""
    prefix = "swa_" if kind == SLIDING else ""
    heads = fields.size(f"{prefix}num_attention_heads")
    kv_heads = fields.size(f"{prefix}num_key_value_heads", high=heads)
    if heads % kv_heads:
        raise ValueError(f"{prefix}num_key_value_heads must divide {prefix}num_attention_heads={heads}, got {kv_heads}")
    return heads, kv_heads, fields.size(f"{prefix}head_dim")


def distance_attention(fields: Fields, kind: str) -> list[Part]:
    """Grouped-query attention; each head mixes d_rel profiles of bias against distance, the same ones for all heads."""
    d_model, profiles = fields.size("hidden_size"), fields.size("d_rel")
    heads, kv_heads, width = head_sizes(fields, kind)
    window = fields.size("sliding_window_size", "sliding_window") if kind == SLIDING else None
    extent = fields.size("rel_extent") if window is None else window
    return [
        *grouped_query_attention(d_model, heads, kv_heads, width, window=window),
        *linear("attention", d_model, heads * profiles),
        Weight("attention", (profiles, extent), kept=extent),
        Weight("attention", (profiles, extent), copies=heads - 1, stored=False, kept=extent),
    ]


def short_convolution(fields: Fields, channels: int, component: str = "attention") -> list[Part]:
    """A convolution along the tokens that is added to its input."""
    return causal_convolution(channels, fields.size("conv_kernel_size", "sconv_kernel_size"), component=component)


def read_kinds(fields: Fields, layers: int) -> Sequence[str]:
    """Each layer's attention: by layer_types or local_layer_ids, or else a full one after every five windows."""
    local = fields.layer_numbers("local_layer_ids", layers, default=None) if fields.kind == "inkling_text" else None
    local = [number for number in range(layers) if (number + 1) % 6] if local is None else local
    default = tuple(SLIDING if number in local else FULL for number in range(layers))
    return layer_kinds(fields, layers, (FULL, SLIDING), default=default)


@family("inkling_text")
def inkling(fields: Fields) -> Architecture:
    """Convolutions over keys, values and what each block gives out; the router also weighs the shared experts.

    Source: Thinking Machines Lab 2026, Inkling release.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    fields.refuse("tie_word_embeddings", "Transformers ties no weights of this family")
    shared = fields.size("n_shared_experts")
    kinds = read_kinds(fields, layers)
    dense_first = fields.size("dense_mlp_idx", default=0, low=0, high=layers)
    which = read_sparse(fields, layers, dense_first=dense_first)
    separate = fields.get("dense_intermediate_size", default=None) is not None
    d_expert = fields.size("intermediate_size" if separate else "moe_intermediate_size")
    scale = Weight("norms", (1,), use="scale")
    sparse = [
        *routed_experts(d_model, d_expert, *experts),
        *linear("router", d_model, shared),
        scale,
        *mlp("shared_experts", d_model, d_expert, copies=shared),
    ]
    dense = [*mlp("dense_mlp", d_model, fields.size("dense_intermediate_size", "intermediate_size")), scale]
    blocks = []
    for kind, has_experts in zip(kinds, which, strict=True):
        _, kv_heads, width = head_sizes(fields, kind)
        blocks.append(
            [
                *norm(d_model),
                *norm(d_model),
                *distance_attention(fields, kind),
                *norm(width),
                *norm(width),
                *short_convolution(fields, kv_heads * width) * 2,
                *short_convolution(fields, d_model) * 2,
                *(sparse if has_experts else dense),
            ]
        )
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), more=norm(d_model))


def attended_blocks(d_model: int, blocks: int, queries: int = 1) -> list[Part]:
    """Learned queries that attend, token by token, to what blocks of layers gave out, and to the one under way."""
    return [
        Weight("norms", (queries, d_model), use="scale"),
        State(0, 4 * queries * (blocks + 1) * d_model, "norms"),
    ]


@family("inkling2_text")
def inkling2(fields: Fields) -> Architecture:
    """Residuals are attended to over blocks of layers; gates and sinks made from the query; experts in every layer.

    In layers of full attention the filters over keys and values differ from token to token.
    Source: Thinking Machines Lab 2026, Inkling 2 release.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    fields.refuse("tie_word_embeddings", "Transformers ties no weights of this family")
    every = fields.size("n_layers_per_attn_res_block")
    kernel = fields.size("conv_kernel_size", "sconv_kernel_size")
    sparse = routed_experts(d_model, fields.size("moe_intermediate_size", "intermediate_size"), *experts)
    blocks = []
    for number, kind in enumerate(read_kinds(fields, layers)):
        heads, kv_heads, width = head_sizes(fields, kind)
        full = kind == FULL
        entry = attended_blocks(d_model, -(-number // every), 3 if full else 1) if number else []
        blocks.append(
            [
                *norm(d_model) * (4 if full else 2),
                *entry,
                *attended_blocks(d_model, number // every + 1),
                *distance_attention(fields, kind),
                *linear("attention", d_model, heads * width),
                *linear("attention", d_model, heads),
                Weight("attention", (heads, width), use="scale"),
                Weight("attention", (heads, fields.size("d_rel")), use="scale"),
                *short_convolution(fields, kv_heads * width) * 2,
                *(linear("attention", d_model, kv_heads * kernel) * 2 if full else []),
                *short_convolution(fields, d_model) * 2,
                *sparse,
            ]
        )
    more = [*norm(d_model), *attended_blocks(d_model, -(-layers // every))]
    return decoder(fields, blocks, experts=experts, moe_layers=layers, more=more)


family("inkling_mm_model")(text_only("vision_config", "its tower merges patches step by step, and it hears besides"))
family("inkling2")(text_only("vision_config", "its tower is of a kind of its own"))
