"""Families that see or hear: what a token of text costs in them, and which are counted by their text part alone."""

import pytest

from moe_lab.accounting.counts import count

from .small_configs import TEXT_ONLY, WHOLES


@pytest.mark.parametrize("model_type", WHOLES)
def test_a_text_token_costs_what_it_costs_the_text_part(model_type, small_config, fields_of):
    whole = fields_of(small_config(model_type), model_type)
    tied = whole.get("tie_word_embeddings", False)
    counts, text = count(whole), count({**whole["text_config"], "tie_word_embeddings": tied})
    assert counts.flops_per_sequence(12) == text.flops_per_sequence(12)
    assert counts.active_params == text.active_params
    assert counts.kv_cache_bytes(12, "int8") == text.kv_cache_bytes(12, "int8")
    assert counts.total_params == text.total_params + counts.params_by_component["vision"]


@pytest.mark.parametrize("model_type", TEXT_ONLY)
def test_a_whole_that_is_not_counted_says_what_is(model_type):
    field = TEXT_ONLY[model_type]
    with pytest.raises(ValueError, match=rf"{field} .* count its .*text_config"):
        count({"model_type": model_type})
