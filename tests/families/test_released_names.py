"""Configs as they are published, under names that Transformers changes when it reads them."""

import pytest

from moe_lab.accounting.counts import count

from .small_configs import GEMMA, HEADS, INDEX, INKLING, LATENT, M3, MAMBA, NEMOTRON, SMALL, config_class

AS_RELEASED = {
    "kimi_linear": {
        **SMALL,
        "num_hidden_layers": 4,
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "head_dim": 12,
            "num_heads": 3,
            "short_conv_kernel_size": 3,
        },
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "num_experts": 8,
        "num_experts_per_token": 3,
        "num_shared_experts": 2,
        "first_k_dense_replace": 2,
    },
    "nemotron_h": {
        **SMALL,
        **HEADS,
        **NEMOTRON,
        "head_dim": 12,
        "hybrid_override_pattern": "ME*-",
        "mamba_d_conv": 3,
        "moe_latent_size": 20,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_shared_expert_intermediate_size": 44,
    },
    "granitemoehybrid": {
        **SMALL,
        **HEADS,
        **MAMBA,
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 40,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_d_head": "auto",
    },
    "dots3_note_text": {
        **SMALL,
        **LATENT,
        **INDEX,
        "use_sliding_window": True,
        "sliding_window_size": 7,
        "first_k_dense_replace": 2,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": 44,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 12,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 14,
        "swa_v_head_dim": 11,
    },
    "inkling_text": {
        **SMALL,
        **INKLING,
        "layer_types": None,
        "local_layer_ids": [0, 2],
        "dense_mlp_idx": 1,
        "intermediate_size": 40,
        "dense_intermediate_size": 48,
        "n_shared_experts": 2,
        "conv_kernel_size": 4,
    },
    "gemma4_text": {**SMALL, **GEMMA, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    "minimax_m3_vl_text": {
        **SMALL,
        **M3,
        "mlp_layer_types": None,
        "layer_types": None,
        "moe_layer_freq": [0, 1],
        "sparse_attention_config": {
            "sparse_attention_freq": [0, 1],
            "sparse_num_index_heads": 3,
            "sparse_index_dim": 20,
            "sparse_block_size": 2,
            "sparse_topk_blocks": 5,
        },
    },
    "step3p5": {
        **SMALL,
        "tie_word_embeddings": False,
        "num_attention_heads": 4,
        "num_attention_groups": 2,
        "head_dim": 16,
        "moe_num_experts": 6,
        "moe_top_k": 2,
        "share_expert_dim": 44,
        "sliding_window": 8,
        "num_nextn_predict_layers": 1,
        "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
        "moe_layers_enum": "1, 3",
        "attention_other_setting": {"num_attention_heads": 6},
    },
    "unlimited_ocr_text": {
        **SMALL,
        "tie_word_embeddings": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 3,
    },
}
"""Configs under the names of the releases, which Transformers changes when it reads them."""


@pytest.mark.parametrize("model_type", AS_RELEASED)
def test_the_names_of_a_release_count_like_those_that_transformers_makes_of_them(model_type):
    released = {**AS_RELEASED[model_type], "model_type": model_type}
    counts, made = count(released), count(config_class(model_type)(**AS_RELEASED[model_type]).to_dict())
    assert counts.params_by_component == made.params_by_component
    assert counts.active_params_by_component == made.active_params_by_component
    assert counts.flops_per_sequence_by_component(12) == made.flops_per_sequence_by_component(12)
