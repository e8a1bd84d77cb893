"""Hybrids of attention and Mamba: Jamba's, IBM's and NVIDIA's."""

import math
from collections.abc import Sequence
from functools import partial

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
from moe_lab.accounting.families.vision import text_only
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part
from moe_lab.accounting.recurrent import mamba, mamba2

SCAN = ("FLOPs of recurrent layers are those of the recurrent form; kernels that work in chunks execute more",)
"""What the table of a hybrid adds."""


@family("jamba")
def jamba(fields: Fields) -> Architecture:
    """One attention layer in attn_layer_period, Mamba in the others; experts in one of expert_layer_period.

    Source: Lieber et al. 2024 (arXiv:2403.19887), section 2 and figure 1.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "num_experts", "num_local_experts")
    attends, has_experts = (_every(fields, name, layers) for name in ("attn", "expert"))
    has_experts = [has and experts[0] > 1 for has in has_experts]
    step_rank = fields.get("mamba_dt_rank", default="auto")
    step_rank = math.ceil(d_model / 16) if step_rank == "auto" else fields.size("mamba_dt_rank")
    state_dim = fields.size("mamba_d_state")
    recurrent = [
        *mamba(
            d_model,
            fields.size("mamba_expand") * d_model,
            state_dim,
            step_rank,
            fields.size("mamba_d_conv"),
            bias=fields.flag("mamba_proj_bias", False),
            conv_bias=fields.flag("mamba_conv_bias", True),
        ),
        *norm(step_rank),
        *norm(state_dim),
        *norm(state_dim),
    ]
    attention = read_attention(fields)
    d_hidden = fields.size("intermediate_size")
    sparse = routed_experts(d_model, d_hidden, *experts)
    dense = mlp("dense_mlp", d_model, d_hidden)
    blocks = [
        [*pre_norms(fields), *(attention if attend else recurrent), *(sparse if has else dense)]
        for attend, has in zip(attends, has_experts, strict=True)
    ]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(has_experts), remarks=SCAN)


def _every(fields: Fields, what: str, layers: int) -> list[bool]:
    """Which layers are number ``offset`` of their period."""
    period = fields.size(f"{what}_layer_period")
    offset = fields.size(f"{what}_layer_offset", low=0, high=period - 1)
    return [number % period == offset for number in range(layers)]


@family("granitemoehybrid")
def granitemoehybrid(fields: Fields) -> Architecture:
    """Mamba-2 or attention in each layer, then a shared network beside routed experts (or alone, without any).

    Source: IBM 2025, Granite 4.0 release.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    num_experts = fields.size("num_local_experts", "num_experts", low=0)
    experts = read_experts(fields, "num_local_experts", "num_experts") if num_experts else (0, 0)
    words = ("linear_attention", "full_attention")
    kinds = layer_kinds(
        fields, layers, words, "layer_types", "layers_block_type", default=("linear_attention",) * layers
    )
    heads, inner = fields.size("mamba_n_heads"), fields.size("mamba_expand") * d_model
    if inner % heads:
        raise ValueError(f"mamba_n_heads must divide mamba_expand * hidden_size = {inner}, got {heads}")
    if fields.get("mamba_d_head", default="auto") != "auto":
        fields.choice("mamba_d_head", (inner // heads,))
    recurrent = mamba2(
        d_model,
        heads,
        inner // heads,
        fields.size("mamba_d_state"),
        fields.size("mamba_n_groups", high=heads),
        fields.size("mamba_d_conv"),
        bias=fields.flag("mamba_proj_bias", False),
        conv_bias=fields.flag("mamba_conv_bias", True),
    )
    bias = fields.flag("attention_bias", False)
    mixers = {"linear_attention": recurrent}
    if "full_attention" in kinds:
        mixers["full_attention"] = read_attention(fields, qkv_bias=bias, output_bias=bias)
    shared = fields.size("shared_intermediate_size")
    feed_forward = (
        [
            *routed_experts(d_model, fields.size("intermediate_size"), *experts),
            *mlp("shared_experts", d_model, shared),
        ]
        if num_experts
        else mlp("dense_mlp", d_model, shared)
    )
    blocks = [[*pre_norms(fields), *mixers[kind], *feed_forward] for kind in kinds]
    return decoder(fields, blocks, experts=experts, moe_layers=layers if num_experts else 0, remarks=SCAN)


LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
"""Nemotron-H's pattern, a letter a layer."""


def read_pattern(fields: Fields) -> Sequence[str]:
    """Nemotron-H's layers: a list with one word a layer, or ``hybrid_override_pattern`` with one letter a layer."""
    names = ("layers_block_type", "layer_types")
    listed = [fields.entries(name, default=None) for name in names]
    given = next((words for words in listed if words is not None), None)
    if given is None:
        pattern = fields.get("hybrid_override_pattern")
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(LETTERS):
            raise ValueError(f"hybrid_override_pattern may hold the letters {' '.join(LETTERS)}; got {pattern!r:.80}")
        kinds = [LETTERS[letter] for letter in pattern]
    elif not given:
        raise ValueError(f"{fields.name(*names)} must name at least one layer, got none")
    else:
        kinds = layer_kinds(fields, len(given), list(LETTERS.values()), *names)
    fields.choice("num_hidden_layers", (len(kinds),), default=len(kinds))
    return kinds


@family("nemotron_h")
def nemotron_h(fields: Fields) -> Architecture:
    """Every layer is one thing: Mamba-2, attention, a network or experts, with squared ReLU and no gate.

    Source: NVIDIA 2025, Nemotron-H (arXiv:2504.03624), section 2; with experts, Nemotron 3 Nano release.
    """
    d_model = fields.size("hidden_size")
    kinds = read_pattern(fields)
    fields.refuse("tie_word_embeddings", "Transformers ties no weights of this family")
    read = {
        "linear_attention": _nemotron_mamba,
        "full_attention": partial(read_attention, head_dim=REQUIRED),
        "moe": _nemotron_experts,
        "mlp": _nemotron_mlp,
    }
    made = {kind: read[kind](fields) for kind in set(kinds)}
    experts = read_experts(fields, "n_routed_experts", "num_local_experts") if "moe" in kinds else (0, 0)
    blocks = [[*norm(d_model), *made[kind]] for kind in kinds]
    return decoder(fields, blocks, experts=experts, moe_layers=kinds.count("moe"), remarks=SCAN)


def _nemotron_mlp(fields: Fields) -> list[Part]:
    d_hidden, bias = fields.size("intermediate_size"), fields.flag("mlp_bias", False)
    return mlp("dense_mlp", fields.size("hidden_size"), d_hidden, gated=False, bias=bias)


def _nemotron_mamba(fields: Fields) -> list[Part]:
    bias = fields.flag("use_bias", False)
    heads = fields.size("mamba_num_heads")
    return mamba2(
        fields.size("hidden_size"),
        heads,
        fields.size("mamba_head_dim"),
        fields.size("ssm_state_size"),
        fields.size("mamba_n_groups", "n_groups", high=heads),
        fields.size("mamba_d_conv", "conv_kernel"),
        bias=bias,
        conv_bias=fields.flag("mamba_conv_bias", fields.flag("use_conv_bias", True)),
    )


def _nemotron_experts(fields: Fields) -> list[Part]:
    """Experts that may work in a narrower space, moe_latent_size, into and out of which every token is projected."""
    d_model, bias = fields.size("hidden_size"), fields.flag("mlp_bias", False)
    num_experts, top_k = read_experts(fields, "n_routed_experts", "num_local_experts")
    latent = fields.size("moe_latent_size", default=None)
    parts = linear("router", d_model, num_experts)
    if latent is not None:
        # They belong to the experts' path, but every token uses them, as it does a shared expert.
        parts += [
            *linear("shared_experts", d_model, latent, bias=bias),
            *linear("shared_experts", latent, d_model, bias=bias),
        ]
    d_expert, d_shared = fields.size("moe_intermediate_size"), fields.size("moe_shared_expert_intermediate_size")
    return [
        *parts,
        *mlp("experts", latent or d_model, d_expert, gated=False, copies=num_experts, used=top_k),
        *mlp("shared_experts", d_model, d_shared, gated=False, bias=bias),
    ]


family("nemotron_h_omni")(text_only("vision_config", "it sees and hears besides, with towers of other kinds"))
