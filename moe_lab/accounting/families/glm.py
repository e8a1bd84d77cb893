"""GLM's, and Solar Open, which is built like them: shared experts beside the routed ones, the first layers dense."""

from moe_lab.accounting.blocks import mlp, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_attention,
    read_experts,
    read_latent_attention,
    read_shared_experts,
    read_sparse,
)
from moe_lab.accounting.fields import REQUIRED, Fields
from moe_lab.accounting.parts import Architecture, Part


def read_glm_experts(fields: Fields, experts: tuple[int, int]) -> list[Part]:
    """Router, routed experts and shared experts of a layer."""
    routed = routed_experts(fields.size("hidden_size"), fields.size("moe_intermediate_size"), *experts)
    return [*routed, *read_shared_experts(fields, "n_shared_experts")]


@family("glm4_moe")
def glm4_moe(fields: Fields) -> Architecture:
    """Biases in queries, keys and values but not in the output, and the norm of queries and keys where asked for.

    Source: GLM-4.5 (arXiv:2508.06471), section 2.1 and table 1.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    first = fields.size("first_k_dense_replace", low=0, high=layers)
    rest = [
        *pre_norms(fields),
        *read_attention(
            fields,
            qkv_bias=fields.flag("attention_bias", False),
            qk_norm="head" if fields.flag("use_qk_norm", False) else "none",
        ),
    ]
    sparse, dense = read_glm_experts(fields, experts), mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = [[*rest, *(dense if number < first else sparse)] for number in range(layers)]
    return decoder(fields, blocks, experts=experts, moe_layers=layers - first)


@family("solar_open")
def solar_open(fields: Fields) -> Architecture:
    """GLM-4.5's layer without norms of queries and keys, and experts in every layer.

    Source: Solar Open Technical Report (arXiv:2601.07022).
    """
    layers = num_layers(fields)
    fields.refuse("use_qk_norm", "Solar Open has no norms of queries and keys")
    fields.refuse("first_k_dense_replace", "every layer of Solar Open has experts", harmless=(None, 0))
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    attention = read_attention(fields, head_dim=REQUIRED, qkv_bias=fields.flag("attention_bias", False))
    layer = [*pre_norms(fields), *attention, *read_glm_experts(fields, experts)]
    return decoder(fields, [layer] * layers, experts=experts, moe_layers=layers)


@family("glm4_moe_lite")
def glm4_moe_lite(fields: Fields) -> Architecture:
    """Latent attention in place of grouped queries; the first layer is dense unless the config says otherwise.

    Source: Z.ai 2026, GLM-4.7-Flash (release).
    """
    layers = num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    which = read_sparse(fields, layers, dense_first=1)
    rest = [*pre_norms(fields), *read_latent_attention(fields)]
    sparse = read_glm_experts(fields, experts)
    dense = mlp("dense_mlp", fields.size("hidden_size"), fields.size("intermediate_size"))
    blocks = [[*rest, *(sparse if has else dense)] for has in which]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))
