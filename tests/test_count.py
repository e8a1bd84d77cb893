"""The count of a model: by hand, by its own rules, and what it refuses."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import moe_lab as ml
from moe_lab.accounting.families import FAMILIES
from moe_lab.accounting.parts import Attention
from moe_lab.accounting.precision import BITS

TINY = {
    "model_type": "mixtral",
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 5,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}
EMBEDDING = OUTPUT = 10 * 8
ATTENTION = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8)  # head_dim 2: queries and output 8 wide, keys and values 4
ROUTER = 3 * 8 * 6
EXPERT = 3 * 3 * 8 * 5  # of each layer one, with three matrices
NORMS = 7 * 8


def test_by_hand():
    counts = ml.count(TINY)
    assert counts.total_params == EMBEDDING + OUTPUT + ATTENTION + ROUTER + 6 * EXPERT + NORMS
    assert counts.active_params == EMBEDDING + OUTPUT + ATTENTION + ROUTER + 2 * EXPERT + NORMS
    products = OUTPUT + ATTENTION + ROUTER + 2 * EXPERT
    scores = 3 * 4 * (2 + 2)  # layers, heads, both products
    assert counts.flops_per_token(1) == 2 * (products + scores)
    assert counts.flops_per_token(100) == 2 * (products + 100 * scores)
    assert counts.flops_per_token_by_component(7)["attention"] == 2 * (ATTENTION + 7 * scores)
    assert counts.flops_per_sequence(5) == 2 * (5 * products + (1 + 2 + 3 + 4 + 5) * scores)
    assert counts.flops_per_sequence(5, skip_masked=False) == 2 * (5 * products + 25 * scores)
    assert counts.flops_per_sequence(0) == 0
    assert counts.bytes("bfloat16") == counts.bytes(torch.bfloat16) == 2 * counts.total_params
    assert counts.bytes("float32", experts="int4") == 4 * (counts.total_params - 6 * EXPERT) + 6 * EXPERT // 2
    assert counts.kv_cache_bytes(9, "float16", sequences=2) == 2 * 9 * 3 * (2 * 2 + 2 * 2) * 2


def test_activations_by_hand():
    attention = 8 + 4 + 4 + 8  # queries, keys, values, and what the projection gives out
    experts = 2 * (2 * 5 + 5 + 8)  # for each of two experts: gate and up, their product, the answer
    layer = 2 * 8 + attention + 6 + experts
    assert ml.count(TINY).activation_bytes(4, "float32") == 4 * 4 * (3 * layer + 8 + 10)


@pytest.mark.parametrize(
    ("embeddings", "tied", "counted"),
    [
        ("both", False, EMBEDDING + OUTPUT),
        ("output", False, OUTPUT),
        ("none", False, 0),
        ("both", True, EMBEDDING),  # one matrix in both roles
        ("output", True, OUTPUT),
        ("none", True, 0),
    ],
)
def test_embedding_conventions(embeddings, tied, counted):
    counts = ml.count({**TINY, "tie_word_embeddings": tied}, embeddings=embeddings)
    assert counts.active_params == counted + ATTENTION + ROUTER + 2 * EXPERT + NORMS
    assert counts.total_params == EMBEDDING + (0 if tied else OUTPUT) + ATTENTION + ROUTER + 6 * EXPERT + NORMS
    assert counts.flops_per_token(3) == ml.count(TINY).flops_per_token(3)  # the convention and the tie change no work


@given(st.integers(0, 40), st.integers(1, 12), st.booleans())
def test_pairs_of_attention_are_those_of_the_mask(tokens, window, causal):
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    near = (query - key < window) & (key - query < window)
    mask = near & (key <= query) if causal else near
    part = Attention(2, 3, 4, cached=1, window=window, causal=causal)
    assert part.pairs(tokens, tokens, skip_masked=True) == int(mask.sum())
    assert part.pairs(tokens, tokens, skip_masked=False) == tokens**2


def test_a_window_bounds_work_and_cache():
    free, bounded = (ml.count({**TINY, "sliding_window": window}) for window in (None, 4))
    assert bounded.flops_per_token(3) == free.flops_per_token(3)
    assert bounded.flops_per_token(50) == free.flops_per_token(4)
    assert bounded.kv_cache_bytes(50, "int8") == free.kv_cache_bytes(4, "int8")


@given(st.sampled_from(sorted(BITS)), st.integers(1, 7))
def test_bytes_are_whole_and_round_up(dtype, width):
    counts = ml.count({**TINY, "vocab_size": width})
    bits = counts.total_params * BITS[dtype]
    assert isinstance(counts.bytes(dtype), int) and 0 <= counts.bytes(dtype) * 8 - bits < 8


def test_the_table_adds_up():
    counts = ml.count(TINY)
    for key, total in (
        ("params", counts.total_params),
        ("active_params", counts.active_params),
        ("flops_per_token", counts.flops_per_token(20)),
    ):
        assert sum(row[key] for row in counts.rows(20)) == total
    assert f"{counts.total_params:,}" in counts.table() and "experts" in counts.table()
    assert f"{counts.total_params:,}" in repr(counts)
    json.dumps(counts.as_dict())


def test_a_config_may_be_a_dict_a_file_a_folder_or_a_name(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    total = ml.count(TINY).total_params
    monkeypatch.chdir(tmp_path)
    for config in (tmp_path / "config.json", tmp_path, str(tmp_path), "config.json"):
        assert ml.count(config).total_params == total
    assert ml.count("Mixtral 8x7B").total_params == 46_702_792_704


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "model_type is missing"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": "mixtrall"}, "model_type='mixtrall' .* similar: mixtral"),
        ({"model_type": 7}, "model_type=7"),
        ({"model_type": ["mixtral"]}, "model_type="),
        ("mixtral-9x9b", "name must be .*'mixtral-9x9b'"),
        ("nowhere/config.json", "no file nowhere"),
        ({**TINY, "num_experts_per_tok": 7}, r"num_experts_per_tok must be in 1\.\.6, got 7"),
        ({**TINY, "num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads=4, got 3"),
        ({**TINY, "hidden_size": 6}, "num_attention_heads must divide hidden_size=6"),
        ({**TINY, "num_hidden_layers": 10**9}, "num_hidden_layers must be"),
        ({**TINY, "vocab_size": 10**400}, r"vocab_size must be at most 2\*\*40"),
        (json.dumps({**TINY, "why": "x" * 200}), "a text that begins"),
        ("x" * 5000, "a text that begins"),
        ({**TINY, "hidden_sise": 8, "hidden_size": None}, "hidden_size is missing.*'hidden_sise'"),
    ],
)
def test_refuses(config, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        ml.count(config)


@pytest.mark.parametrize("content", ["{", "[]", '"mixtral"', "\x00", "[" * 100_000])
def test_refuses_a_file_that_is_no_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config: "):
        ml.count(tmp_path)


@pytest.mark.parametrize("field", sorted(set(TINY) - {"model_type"}))
@pytest.mark.parametrize("value", [None, 0, -1, 2.5, True, "8", [], {}, float("nan")])
def test_a_field_that_makes_no_sense_is_named(field, value, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match=field):
        ml.count({**TINY, field: value})


def test_refuses_options(unchecked_shapes):
    counts = ml.count(TINY)
    for call, says in [
        (lambda: ml.count(TINY, embeddings="input"), "embeddings must be one of both, output, none; got 'input'"),
        (lambda: ml.count(TINY, embeddings=[]), r"embeddings must be one of both, output, none; got \[\]"),
        (lambda: counts.table(10**400), r"context must be at most 2\*\*40"),
        (lambda: ml.count(3), "config must be a dict, a path or a name, got int"),
        (lambda: counts.flops_per_token(0), "context must be at least 1"),
        (lambda: counts.bytes("float12"), "dtype must be one of .*'float12'"),
        (lambda: counts.bytes("int8", experts="int3"), "experts must be one of .*'int3'"),
        (lambda: counts.kv_cache_bytes(-1, "int8"), "context must be at least 0"),
        (lambda: counts.activation_bytes(1.5, "int8"), "tokens must be a whole number"),
        (lambda: counts.flops_per_sequence(5, decoder_tokens=5), "mixtral has no decoder .* got 5"),
    ]:
        with pytest.raises((ValueError, TypeError), match=says):
            call()


def test_the_families_are_described():
    for model_type, read in FAMILIES.items():
        said = read.__doc__ or ""
        assert "Source:" in said or said.startswith("Refuse the whole"), model_type
