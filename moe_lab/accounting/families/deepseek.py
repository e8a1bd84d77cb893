"""DeepSeek's: latent attention, a few dense layers first, then many small experts beside shared ones."""

from moe_lab.accounting.blocks import mlp, norm, routed_experts
from moe_lab.accounting.families.registry import (
    decoder,
    family,
    num_layers,
    pre_norms,
    read_experts,
    read_latent_attention,
    read_shared_experts,
    read_sparse,
)
from moe_lab.accounting.families.vision import text_only
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


@family("deepseek_v2", "deepseek_v3", "kimi_k2", "mistral4")
def deepseek(fields: Fields) -> Architecture:
    """first_k_dense_replace dense layers, then routed experts and n_shared_experts that every token uses.

    Source: DeepSeek-V2 (arXiv:2405.04434), section 2; DeepSeek-V3 (arXiv:2412.19437), section 2; Mistral AI
    2026, Mistral Small 4 (release).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_experts", "num_local_experts")
    d_expert = fields.size("moe_intermediate_size")
    first = fields.size("first_k_dense_replace", low=0, high=layers)
    fields.choice("moe_layer_freq", (1,), default=1)
    rest = [*pre_norms(fields), *read_latent_attention(fields)]
    shared = fields.size("n_shared_experts", low=0)
    bias = fields.kind == "deepseek_v2" and fields.flag("mlp_bias", False)  # the later ones read no such field
    sparse = [
        *routed_experts(d_model, d_expert, *experts),
        *(mlp("shared_experts", d_model, d_expert * shared, bias=bias) if shared else []),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"), bias=bias)
    blocks = [[*rest, *(dense if number < first else sparse)] for number in range(layers)]
    return decoder(
        fields,
        blocks,
        experts=experts,
        moe_layers=layers - first,
        remarks=("the cache holds the latent vector of each token, as the paper counts it",),
    )


family("kimi_k25")(text_only("vision_config", "its tower is of another kind"))


@family("axk1")
def axk1(fields: Fields) -> Architecture:
    """DeepSeek-V3's layer with one more norm, of what the experts give; queries always come through a bottleneck.

    Source: A.X K1 Technical Report (arXiv:2601.09200).
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields)
    experts = read_experts(fields, "n_routed_experts", "num_local_experts")
    fields.choice("moe_layer_freq", (1,), default=1)
    fields.size("q_lora_rank")
    which = read_sparse(fields, layers)
    rest = [*pre_norms(fields), *read_latent_attention(fields)]
    sparse = [
        *routed_experts(d_model, fields.size("moe_intermediate_size"), *experts),
        *read_shared_experts(fields, "n_shared_experts"),
        *norm(d_model),
    ]
    dense = mlp("dense_mlp", d_model, fields.size("intermediate_size"))
    blocks = [[*rest, *(sparse if has else dense)] for has in which]
    return decoder(fields, blocks, experts=experts, moe_layers=sum(which))
