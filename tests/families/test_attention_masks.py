"""Which pairs of tokens meet in a family's attention: against softmax weights, and layer kinds against Transformers."""

import pytest
import torch
import transformers

from moe_lab.accounting.counts import count
from moe_lab.accounting.parts import Attention

from .small_configs import MODEL_TYPES, SMALL_FOR, config_class

LISTS = (
    "layer_types",
    "mlp_layer_types",
    "mlp_only_layers",
    "indexer_types",
    "moe_layers",
    "no_rope_layers",
    "kv_source_layers",
)
UNDERIVED = ["lfm2_moe"]
"""Families whose layers are of two kinds in no pattern: from no list Transformers derives none, and builds no model."""

PATTERNED = [
    name for name in MODEL_TYPES if getattr(config_class(name), "layer_types", 0) is None and name not in UNDERIVED
]


@pytest.mark.parametrize("model_type", PATTERNED)
def test_layers_are_of_the_kinds_that_transformers_derives(model_type, small_config, fields_of):
    """13 layers, so that every pattern shows. Without the lists, as in an older config.json, the same or a refusal."""
    own = config_class(model_type)
    config = small_config(model_type, num_hidden_layers=13, **{name: None for name in LISTS if hasattr(own, name)})
    full = fields_of(config, model_type)
    bare = {name: value for name, value in {**SMALL_FOR.get(model_type, {}), **full}.items() if name not in LISTS}
    parts = count(full).architecture.parts
    try:
        assert count(bare).architecture.parts == parts
    except ValueError as refusal:
        assert "is missing" in str(refusal)
    if {"sliding_attention", "full_attention"} >= set(config.layer_types):
        windows = [part.window for part in parts if isinstance(part, Attention)]
        derived = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
        assert windows == derived


@pytest.mark.parametrize("model_type", UNDERIVED)
def test_layers_of_kinds_that_transformers_does_not_derive_are_refused(model_type, small_config, fields_of):
    config = small_config(model_type, layer_types=None)
    assert config.layer_types is None
    with pytest.raises(ValueError, match="layer_types is missing"):
        count(fields_of(config, model_type))


MASKED = {
    "mixtral": {"sliding_window": 5},
    "gpt_oss": {"sliding_window": 5},
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 5},
    "granitemoe_swa": {"sliding_window": 5},
    "llama4_text": {"attention_chunk_size": 5, "no_rope_layer_interval": 2},
    "doge": {"keep_window_size": 5},
    "deepseek_v32": {"index_topk": 5},
    "hy_v4": {"index_topk": 5},
    "mistral_large4_text": {"index_topk": 5},
    "dots3_note_text": {"index_topk": 4, "sliding_window": 6},
    "zaya": {"sliding_window": 5},
    "inkling_text": {"sliding_window_size": 5},
    "inkling2_text": {"sliding_window_size": 5},
    "glm_moe_dsa": {"index_topk": 5},
    "axk2": {"index_topk": 5},
    "deepseek_v4": {"index_topk": 4, "sliding_window": 3},
}
"""Families in which a token does not meet all tokens before it, and sizes at which 12 tokens show it."""


@pytest.mark.parametrize("model_type", MASKED)
def test_the_pairs_that_count_are_those_with_a_weight(model_type, small_config, fields_of, build):
    """Softmax gives a masked key exactly 0. An indexer has no softmax, and its value_dim is 0 or 1."""
    config = small_config(model_type, **MASKED[model_type])
    model = build(config, "cpu", attn_implementation="eager").eval()
    with torch.no_grad():
        inner = model if isinstance(model, transformers.PreTrainedModel) else model.model
        weights = inner(torch.arange(12)[None], use_cache=False, output_attentions=True).attentions
    attentions = [
        part for part in count(fields_of(config, model_type)).architecture.parts if isinstance(part, Attention)
    ]
    pairs = [part.pairs(12, 12, True) for part in attentions if part.value_dim > 1]
    assert len(weights) == config.num_hidden_layers
    assert sum(int((weight[0, 0] > 0).sum()) for weight in weights) == sum(pairs) < 78 * len(weights)
