"""LongCat-Flash: two attentions and two dense networks a layer, and experts beside them, some of which do nothing."""

from moe_lab.accounting.blocks import linear, mlp, norm
from moe_lab.accounting.families.registry import decoder, family, num_layers, read_latent_attention
from moe_lab.accounting.fields import Fields
from moe_lab.accounting.parts import Architecture


@family("longcat_flash")
def longcat_flash(fields: Fields) -> Architecture:
    """zero_expert_num of the experts hand a token back as it came: they have no weights, and cost nothing.

    Active parameters and FLOPs are those of a token whose moe_topk experts all have weights: the most there can be.
    Source: Meituan LongCat Team 2025 (arXiv:2509.01322), section 2.
    """
    d_model, layers = fields.size("hidden_size"), num_layers(fields, "num_layers")
    num_experts = fields.size("n_routed_experts", "num_local_experts")
    zero = fields.size("zero_expert_num", low=0)
    top_k = fields.size("moe_topk", "num_experts_per_tok", high=num_experts + zero)
    fields.size("q_lora_rank")
    score_dim = fields.size("qk_nope_head_dim") + fields.size("qk_rope_head_dim")
    if fields.size("qk_head_dim", default=score_dim) != score_dim:
        raise ValueError(f"{fields.name('qk_head_dim')} must be qk_nope_head_dim + qk_rope_head_dim = {score_dim}")
    d_expert = fields.size("expert_ffn_hidden_size", "moe_intermediate_size")
    used = min(top_k, num_experts)
    half = [
        *norm(d_model),
        *norm(d_model),
        *read_latent_attention(fields),
        *mlp("dense_mlp", d_model, fields.size("ffn_hidden_size", "intermediate_size")),
    ]
    layer = [
        *half * 2,
        *linear("router", d_model, num_experts + zero, bias=fields.flag("router_bias", False)),
        *mlp("experts", d_model, d_expert, copies=num_experts, used=used),
    ]
    return decoder(
        fields,
        [layer] * layers,
        experts=(num_experts, used),
        moe_layers=layers,
        remarks=(f"active with {used} experts; a token sent to some of the {zero} without weights uses fewer",),
    )
