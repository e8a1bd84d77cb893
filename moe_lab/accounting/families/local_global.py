"""Families whose layers see a window of tokens or all of them, by turns."""

from collections.abc import Sequence

from moe_lab.accounting.blocks import grouped_query_attention, mlp, norm, routed_experts
from moe_lab.accounting.families.qwen import sparse_layers
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_heads,
    read_shared_experts,
    read_sparse,
    read_windows,
)
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part, Weight


def one_in(period: int):
    """Whether a layer, by its number, is the last of its group of ``period``."""
    return lambda number: (number + 1) % period == 0


def layers_by_turns(
    fields: Fields,
    windows: Sequence[int | None],
    which: Sequence[bool],
    sparse: Sequence[Part],
    dense: Sequence[Part] = (),
    more: Sequence[Part] = (),
    **attention: object,
) -> list[list[Part]]:
    """Layer by layer: norms, attention with the layer's window, experts or a dense network, and ``more`` in each."""
    return [
        [
            *pre_norms(fields),
            *read_attention(fields, window=window, qk_norm="head", **attention),
            *(sparse if has else dense),
            *more,
        ]
        for window, has in zip(windows, which, strict=True)
    ]


@family("dots1")
def dots1(fields: Fields) -> Architecture:
    """Windows, where there are any, from layer max_window_layers on; the first layers dense.

    Source: dots.llm1 Technical Report (arXiv:2506.05767), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    first = fields.size("first_k_dense_replace", low=0, high=layers)
    if fields.get("layer_types", default=None) is None and fields.get("sliding_window", default=None) is not None:
        last_full = fields.size("max_window_layers", low=0)
    else:
        last_full = layers
    windows = read_windows(fields, layers, lambda number: number < last_full)
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *read_shared_experts(fields, "n_shared_experts"),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    which = [number >= first for number in range(layers)]
    blocks = layers_by_turns(fields, windows, which, sparse, dense, qkv_bias=bias, output_bias=bias)
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("exaone_moe")
def exaone_moe(fields: Fields) -> Architecture:
    """Every sliding_window_pattern-th layer sees all tokens.

    Source: K-EXAONE Technical Report (arXiv:2601.01739), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    which = read_sparse(fields, layers)
    given = fields.get("layer_types", default=None) is not None
    period = 1 if given else fields.size("sliding_window_pattern")
    windows = read_windows(fields, layers, one_in(period))
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *read_shared_experts(fields, "num_shared_experts"),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = layers_by_turns(fields, windows, which, sparse, dense)
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("cohere2_moe")
def cohere2_moe(fields: Fields) -> Architecture:
    """One norm for attention and feed-forward network, which work side by side; dense layers have their own width.

    Source: Cohere 2026, Command A+ (release).
    """
    d_model, d_expert, layers = fields.size("hidden_size"), fields.size("intermediate_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    which = read_sparse(fields, layers, dense_first=0)
    first = fields.size("first_k_dense_replace", default=0, low=0, high=layers)
    dense_full, sparse_full = (
        one_in(fields.size(name, default=period))
        for name, period in (("prefix_dense_sliding_window_pattern", 1), ("sliding_window_pattern", 4))
    )
    windows = read_windows(
        fields, layers, lambda number: dense_full(number) if number < first else sparse_full(number - first)
    )
    shared = fields.size("num_shared_experts", low=0)
    sparse = [
        *routed_experts(d_model, d_expert, *experts),
        *(mlp("shared_experts", d_model, d_expert * shared) if shared else []),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("prefix_dense_intermediate_size", default=d_expert))
    blocks = [
        [
            *norm(d_model),
            *read_attention(fields, head_dim=REQUIRED, kv_heads=None, qkv_bias=bias, output_bias=bias, window=window),
            *(sparse if has else dense),
        ]
        for window, has in zip(windows, which, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which), tied=True)


@family("mimo_v2_flash")
def mimo_v2_flash(fields: Fields) -> Architecture:
    """Layers with a window have twice the key-value heads and a sink for each head; values are narrower than keys.

    Source: MiMo-V2-Flash Technical Report (arXiv:2601.02780), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    heads, kv_heads, head_dim = read_heads(fields, head_dim=REQUIRED)
    value_dim = fields.size("v_head_dim")
    bias = fields.flag("attention_bias", False)
    before = fields.size("sliding_window_size", default=None)
    if before is not None:  # the original counts the tokens before the query, Transformers the query too
        fields = Fields({**fields.values, "sliding_window": before + 1}, fields.inside)
    windows = read_windows(fields, layers, lambda number: number == 0 or (number + 1) % 6 == 0)
    which = read_sparse(fields, layers, dense_first=1)
    for name, same in (
        ("swa_num_attention_heads", heads),
        ("swa_num_key_value_heads", 2 * kv_heads),
        ("swa_head_dim", head_dim),
        ("swa_v_head_dim", value_dim),
        ("hybrid_layer_pattern", [int(window is not None) for window in windows]),
        ("moe_layer_freq", [int(has) for has in which]),
        ("add_swa_attention_sink_bias", True),
        ("n_shared_experts", 0),
    ):
        fields.refuse(name, f"it would have to be {same} beside the other fields", harmless=(None, same))
    fields.refuse("add_full_attention_sink_bias", "only layers with a window have sinks")
    if heads % (2 * kv_heads) and any(windows):
        raise ValueError(f"twice num_key_value_heads must divide num_attention_heads={heads}, got {kv_heads}")

    def attention(window: int | None) -> list[Part]:
        shared = kv_heads if window is None else 2 * kv_heads
        sinks = [] if window is None else [Weight("attention", (heads,), use="scale")]
        return [
            *grouped_query_attention(
                d_model, heads, shared, head_dim, value_dim=value_dim, qkv_bias=bias, window=window
            ),
            *sinks,
        ]

    sparse = routed_experts(d_model, fields.size("moe_intermediate_size"), *experts)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = [
        [*pre_norms(fields), *attention(window), *(sparse if has else dense)]
        for window, has in zip(windows, which, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("mellum")
def mellum(fields: Fields) -> Architecture:
    """No shared expert; all layers see everything and have experts unless the config says otherwise.

    Source: Mellum2 Technical Report (arXiv:2605.31268).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    which = read_sparse(fields, layers, dense_first=0)
    windows = read_windows(fields, layers, lambda number: True)
    sparse = routed_experts(d_model, fields.size("moe_intermediate_size"), *experts)
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = layers_by_turns(fields, windows, which, sparse, dense, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias)
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("flint")
def flint(fields: Fields) -> Architecture:
    """A sink for each head, a shared expert without a gate, and two dense layers first.

    Source: Recursive 2026, Flint (release).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    bias = fields.flag("attention_bias", False)
    which = sparse_layers(fields, layers, dense=[0, 1])
    windows = read_windows(fields, layers, lambda n: n < 2 or n % 4 == 1 or n == layers - 1)
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *mlp("shared_experts", d_model, fields.size("shared_expert_intermediate_size")),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    sinks = [Weight("attention", (fields.size("num_attention_heads"),), use="scale")]
    blocks = layers_by_turns(
        fields, windows, which, sparse, dense, sinks, head_dim=REQUIRED, qkv_bias=bias, output_bias=bias
    )
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))


@family("kolibri1")
def kolibri1(fields: Fields) -> Architecture:
    """Every layer has experts beside a shared one, every fifth sees all tokens; norms before and after each part.

    Source: Aleph Alpha 2026, Kolibri 1 (release).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_local_experts", "num_experts")
    windows = read_windows(fields, layers, one_in(5))
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *mlp("shared_experts", d_model, fields.size("shared_expert_intermediate_size")),
    ]
    blocks = layers_by_turns(fields, windows, [True] * layers, sparse, more=pre_norms(fields), head_dim=REQUIRED)
    return decoder(fields, blocks, experts=experts, moe_layers=layers)
