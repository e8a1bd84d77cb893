"""Small configs of every family, for the tests in this folder: data only, and the class that each is a config of."""

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_lab.accounting.families import FAMILIES

OURS = {"kimi_k2": "deepseek_v3", "grok-1": None, "deepspeed_moe": None}
"""Model types that Transformers does not know, and the one with the same layout."""

TEXT_ONLY: dict[str, str] = {
    "deepseek_ocr2": "vision_config",
    "unlimited_ocr": "vision_config",
    "muse_spark": "audio_config",
    "glm5_next": "vision_config",
    "mistral_large4": "vision_config",
    "dots3_note": "vision_config",
    "inkling_mm_model": "vision_config",
    "inkling2": "vision_config",
    "qwen3_omni_moe": "thinker_config",
    "qwen3_omni_moe_thinker": "audio_config",
    "kimi_k25": "vision_config",
    "nemotron_h_omni": "vision_config",
}
"""Families of which the text part is counted and the whole refused, and the field that the refusal names."""

SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "vocab_size": 96,
    "intermediate_size": 48,
    "moe_intermediate_size": 40,
}

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
GLM = {**HEADS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
TEXT = {**SMALL, "num_hidden_layers": 2}
TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 40, "out_hidden_size": 64}
VIT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
ERNIE = {
    **HEADS,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    "moe_intermediate_size": [40, 24],
    "moe_num_experts": 8,
    "moe_k": 2,
}

MAMBA = {"mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 12}
NO_PAD = {"pad_token_id": None}
THREE = {"num_hidden_layers": 3}
KIMI = {"num_local_experts": 16, **NO_PAD}
ZAYA = {"layer_types": ["hybrid", "hybrid_sliding"] * 2, "num_experts_per_tok": 1}
GLM5 = {
    **NO_PAD,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "indexed_attention"],
    "qk_rope_head_dim": 0,
    "mlp_layer_types": ["dense", "sparse"],
    "index_topk": 8,
    "index_kpool": 4,
}
DOTS = {
    **NO_PAD,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_kv_lora_rank": 16,
    "swa_q_lora_rank": 12,
}
# No block is full after 12 tokens: Transformers scores those before each query only, not all pairs as plain kernels do.
QWEN4 = {
    "indexer_n_heads": 3,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 32,
    "indexer_compress_ratio": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "hc_count": 3,
    "hc_lowrank": 10,
    "ple_layer_ids": [1, 3],
    "ple_embed_dim": 24,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "eos_token_id": 1,
}
INKLING = {
    **HEADS,
    "head_dim": 12,
    "swa_num_attention_heads": 6,
    "swa_num_key_value_heads": 3,
    "swa_head_dim": 10,
    "d_rel": 5,
    "rel_extent": 14,
    "sliding_window_size": 7,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "unpadded_vocab_size": 90,
}
NEMOTRON = {"mamba_num_heads": 4, "mamba_head_dim": 10, "n_groups": 2, "ssm_state_size": 14}

DBRX_ATTENTION = {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}
DBRX = {"ffn_hidden_size": 24}
# For each token Transformers computes as many experts as there are: all of them in Llama 4; in NLLB-MoE the first two,
# by a mistake (its table of zeros and ones is read as one of experts). So FLOPs agree where a token uses all there are.
LLAMA4 = {**TEXT, "intermediate_size_mlp": 56, "num_local_experts": 3, "num_experts_per_tok": 3, "head_dim": 8, **HEADS}
LLAMA4_VISION = {"image_size": 28, "projector_input_dim": 24, "projector_output_dim": 28, "vision_output_dim": 28}
STACKS = {"d_model": 64, "d_kv": 8, "d_ff": 40, "decoder_start_token_id": 0}
NLLB = {
    "num_experts": 2,
    "encoder_layers": 3,
    "decoder_layers": 5,
    "encoder_sparse_step": 3,
    "decoder_sparse_step": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
}
LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
# A token sent to an expert without weights costs less than the count's "at most".
LONGCAT = {
    "head_dim": 8,
    "zero_expert_num": 0,
    "n_routed_experts": 6,
    "moe_topk": 3,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 40,
}
INDEX = {"index_topk": 5, "index_head_dim": 16, "index_n_heads": 3, "n_routed_experts": 8, "num_experts_per_tok": 3}
V4 = {
    "num_attention_heads": 4,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 12,
    "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "num_hidden_layers": 4,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "compressed_sparse", "heavily_compressed", "sliding")],
}

GEMMA = {
    **HEADS,
    "num_hidden_layers": 7,
    "head_dim": 16,
    "global_head_dim": 24,
    "vocab_size_per_layer_input": 80,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 8,
    "num_kv_shared_layers": 1,
    "use_double_wide_mlp": True,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 40,
}
EQUAL_KEYS = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
GEMMA_TOWER = {**VIT, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 20}
QWEN = {"num_experts": 8, "num_experts_per_tok": 3, "head_dim": 24}
M3 = {
    **HEADS,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "dense_intermediate_size": 56,
    "shared_intermediate_size": 44,
    "mlp_layer_types": ["dense", "sparse"],
    "layer_types": ["full_attention", "minimax_m3_sparse"],
    "num_hidden_layers": 2,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "rotary_dim": 8,
}
STEP = {
    **HEADS,
    "head_dim": 16,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "share_expert_dim": 44,
    "sliding_window": 8,
    "num_sliding_attention_heads": 6,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}
MUSE = {**HEADS, "head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_hidden_size": 32}

SMALL_FOR: dict[str, dict] = {
    "gemma4_text": GEMMA,
    "gemma4": {"text_config": {**TEXT, **GEMMA, **EQUAL_KEYS}, "vision_config": GEMMA_TOWER},
    "qwen3_5_moe": {"text_config": {**SMALL, **QWEN}, "vision_config": TOWER},
    "minimax_m3_vl_text": M3,
    "minimax_m3_vl": {"text_config": {**TEXT, **M3}, "vision_config": VIT, "projector_hidden_size": 50},
    "deepseek_ocr2_text": {**HEADS, "mlp_layer_types": ["dense", *["sparse"] * 3], "n_routed_experts": 6},
    "unlimited_ocr_text": {**HEADS, "num_key_value_heads": 4, "n_routed_experts": 6, "num_experts_per_tok": 2},
    "step3p5": STEP,
    "step3p7": {"text_config": {**SMALL, **STEP}, "vision_config": VIT},
    "muse_spark_text": {**MUSE, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    "qwen3_vl_moe": {"text_config": TEXT, "vision_config": {**TOWER, "deepstack_visual_indexes": [0, 1]}},
    "qwen3_omni_moe_text": {**HEADS, "tie_word_embeddings": False},
    "glm4v_moe_text": GLM,
    "glm4v_moe": {"text_config": {**TEXT, **GLM}, "vision_config": TOWER},
    "ernie4_5_vl_moe_text": ERNIE,
    "ernie4_5_vl_moe": {"text_config": {**TEXT, **ERNIE}, "vision_config": TOWER},
    "afmoe": {"num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2},
    "axk1": {"num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 16},
    "cohere2_moe": {"num_attention_heads": 4, "head_dim": 16, "first_k_dense_replace": 1, "num_shared_experts": 1},
    "dots1": {**HEADS, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2},
    "ernie4_5_moe": {**HEADS, "pad_token_id": 0},
    "exaone_moe": HEADS,
    "flex_olmo": {"num_attention_heads": 4, "pad_token_id": 0},
    "glm4_moe": HEADS,
    "hunyuan_v1_moe": {"num_attention_heads": 4, "head_dim": 16, "num_experts": 8, "moe_topk": 2},
    "kolibri1": {"num_hidden_layers": 5},
    "mimo_v2_flash": {"num_hidden_layers": 6, "num_attention_heads": 16},
    "mistral4": {"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "openai_privacy_filter": {"pad_token_id": 0},
    "aria": {"text_config": TEXT, "vision_config": VIT, "projector_patch_to_query_dict": {4: 6, 16: 12}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 6, "mamba_d_state": 12},
    "qwen3_next": {"num_experts": 8, "num_experts_per_tok": 3, "head_dim": 24},
    "qwen3_5_moe_text": {"num_experts": 8, "num_experts_per_tok": 3, "head_dim": 24},
    "minimax": {"num_local_experts": 6},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_experts": 6},
    "granitemoehybrid": {
        **HEADS,
        **MAMBA,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "shared_intermediate_size": 40,
    },
    "nemotron_h": {**HEADS, **NEMOTRON, "head_dim": 12},
    "kimi_linear": {**LATENT, **KIMI, "num_hidden_layers": 5, "linear_num_heads": 3, "linear_head_dim": 12},
    "zaya": {**HEADS, "head_dim": 12, "num_experts": 6, "router_hidden_size": 20, "sliding_window": 5, **ZAYA},
    "hy_v4": {**LATENT, **INDEX, **NO_PAD, **THREE, "hc_mult": 3},
    "glm5_next_text": {**LATENT, **INDEX, **GLM5, "linear_num_heads": 3, "linear_head_dim": 12, "hc_mult": 3},
    "mistral_large4_text": {**LATENT, **INDEX, **THREE, "kv_source_layers": [0, 0, 2], "no_rope_layers": [1, 1, 0]},
    "dots3_note_text": {**LATENT, **INDEX, **DOTS, **THREE},
    "qwen4_exp_text": {**QWEN, **QWEN4, "layer_types": ["linear_attention", "indexed_attention"] * 2},
    "qwen4_exp": {
        "text_config": {**TEXT, **QWEN, **QWEN4, "num_hidden_layers": 1, "ple_layer_ids": [1]},
        "vision_config": TOWER,
    },
    "inkling_text": {**INKLING, "mlp_layer_types": ["dense", "sparse"] * 2},
    "inkling2_text": {**INKLING, "n_layers_per_attn_res_block": 3},
    "bailing_hybrid": {**LATENT, **KIMI, "head_dim": 12, "layer_group_size": 2, "first_k_dense_replace": 1},
    "dbrx": {"d_model": 64, "n_layers": 2, "n_heads": 4, "attn_config": DBRX_ATTENTION, "ffn_config": DBRX},
    "llama4_text": LLAMA4,
    "llama4": {"text_config": LLAMA4, "vision_config": {**VIT, **LLAMA4_VISION}},
    "switch_transformers": {**STACKS, "num_layers": 4, "num_decoder_layers": 5, "num_heads": 3},
    "nllb-moe": {**STACKS, **NLLB},
    "granitemoe": HEADS,
    "granitemoeshared": {**HEADS, "shared_intermediate_size": 24},
    "granitemoe_swa": {**HEADS, "shared_intermediate_size": 24},
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 16},
    "doge": {**HEADS, "is_moe": True, "num_experts": 25, "num_experts_per_tok": 3},
    "longcat_flash": {**LATENT, "num_layers": 2, **LONGCAT},
    "deepseek_v32": {**LATENT, **INDEX, "n_group": 2, "topk_group": 2},
    "deepseek_v2": LATENT,
    "deepseek_v3": {**LATENT, "n_routed_experts": 16},
    "kimi_k2": {**LATENT, "n_routed_experts": 16},
    "glm_moe_dsa": {**LATENT, **INDEX, "index_topk_freq": 2},
    "axk2": {**LATENT, **INDEX, "gated_norm_rank": 4},
    "deepseek_v4": {**INDEX, **V4},
}
"""What else makes a family small, and its defaults consistent when small."""

MODEL_TYPES = sorted(set(FAMILIES) - {name for name, twin in OURS.items() if twin is None} - set(TEXT_ONLY))

WHOLES = [model_type for model_type in MODEL_TYPES if "text_config" in SMALL_FOR.get(model_type, {})]


def config_class(model_type):
    """The class of Transformers that holds the family's config."""
    return CONFIG_MAPPING[OURS.get(model_type) or model_type]
