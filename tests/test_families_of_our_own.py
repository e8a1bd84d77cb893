"""The two model types that Transformers lacks, against sums that anyone can follow with a pencil."""

import pytest

from moe_lab.accounting.counts import count
from moe_lab.models import published

GROK = published("grok-1").config
SMALL = {
    "model_type": "deepspeed_moe",
    "vocab_size": 11,
    "hidden_size": 6,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 3,
    "num_experts": [0, 5, 0, 7],
    "num_experts_per_tok": 1,
    "residual": True,
    "max_position_embeddings": 9,
}


def test_grok_1_by_hand():
    d, layers = 6144, 64
    attention = d * 48 * 128 + 2 * d * 8 * 128 + 48 * 128 * d
    assert attention == 88_080_384
    expert = 3 * d * 32768
    assert expert == 603_979_776
    layer = 4 * d + attention + 8 * d + 8 * expert
    total = 131072 * d + layers * layer + d
    assert total == 315_684_820_992
    counts = count(GROK)
    assert counts.total_params == total
    assert counts.active_params == total - layers * 6 * expert
    assert counts.params_by_component == {
        "embedding": 131072 * d,
        "attention": layers * attention,
        "router": layers * 8 * d,
        "experts": layers * 8 * expert,
        "norms": (layers * 4 + 1) * d,
        "output": 0,  # tied
    }
    matrices = attention + 8 * d + 2 * expert
    assert counts.flops_per_token(1) == 2 * (layers * matrices + 131072 * d) + layers * 4 * 48 * 128
    assert counts.kv_cache_bytes(8192, "bfloat16") == layers * 8192 * 2 * 8 * 128 * 2


def test_deepspeed_moe_by_hand():
    """d = 6: 2 heads of 3, networks 24 wide, biases everywhere but in the router; 4 layers, of 0, 5, 0, 7 experts."""
    attention = 4 * (6 * 6 + 6)
    network = (6 * 24 + 24) + (24 * 6 + 6)
    norms = 2 * (6 + 6)
    mix = 6 * 2 + 2
    assert (attention, network, norms, mix) == (168, 318, 24, 14)
    dense = attention + norms + network
    routers = 6 * 5 + 6 * 7
    embeddings = 11 * 6 + 9 * 6
    sparse = 2 * (attention + norms + network + mix) + routers + (5 + 7) * network
    counts = count(SMALL)
    assert counts.total_params == embeddings + 2 * dense + sparse + 12 == 6_088
    assert counts.active_params == counts.total_params - (4 + 6) * network
    assert counts.params_by_component == {
        "embedding": embeddings,
        "attention": 4 * attention,
        "router": routers,
        "experts": 12 * network,
        "shared_experts": 2 * (network + mix),
        "dense_mlp": 2 * network,
        "norms": 4 * norms + 12,
        "output": 0,
    }
    products = 4 * 4 * 36 + (2 + 2 + 2) * 2 * 6 * 24 + 2 * 6 * 2 + routers + 11 * 6
    pairs = 4 * 4 * 2 * 3  # layers * 4 FLOPs * heads * head_dim, for each pair of tokens
    assert counts.flops_per_sequence(5) == 5 * 2 * products + pairs * (1 + 2 + 3 + 4 + 5)
    assert (counts.architecture.moe_layers, counts.architecture.num_experts, counts.architecture.top_k) == (2, 7, 1)


def test_each_flag_by_the_numbers_that_it_adds():
    total = count(SMALL).total_params
    networks = 2 + 2 + 12  # dense layers, those beside the experts, experts

    def change(**fields):
        return count({**SMALL, **fields}).total_params - total

    assert change(residual=False) == -2 * (318 + 14)
    assert change(gated=True) == networks * (6 * 24 + 24)
    assert change(biases=False) == -(4 * 4 * 6 + networks * (24 + 6) + (4 * 2 + 1) * 6)
    assert change(norms_per_layer=4) == 4 * 2 * 12
    assert change(learned_position_embeddings=False) == -9 * 6
    assert change(tie_word_embeddings=False) == 11 * 6
    assert change(num_experts=5) == 2 * (318 + 14 - 318) + 2 * 30 - 42 + 30 + (4 * 5 - 12) * 318
    assert change(num_experts_per_tok=2) == 0
    assert count({**SMALL, "num_experts_per_tok": 2}).active_params == count(SMALL).active_params + 2 * 318


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("grok-1", 315.685),
        ("deepspeed-350m-moe-128", 13.150),
        ("deepspeed-1.3b-moe-128", 52.472),
        ("deepspeed-pr-moe-350m-32-64", 4.117),
        ("deepspeed-pr-moe-1.3b-64-128", 31.392),
        ("switch-base-128", 7.415),
        ("switch-xxl-128", 394.675),
        ("switch-c-2048", 1571.376),
    ],
)
def test_totals_of_published_models(name, billions):
    """The first from the code that was published, the others from their papers; what was printed is near, not equal."""
    assert round(count(published(name).config).total_params / 1e9, 3) == billions


NONSENSE = [
    ("num_experts", [0, 5, 0], "num_experts must have an entry for each of 4 layers, got 3"),
    ("num_experts", [0, 0, 0, 0], "num_experts must have experts in some layer"),
    ("num_experts", [0, 5, 0, -1], r"num_experts\[3\] must be at least 0, got -1"),
    ("num_experts", [0, 5, 0, 2.5], r"num_experts\[3\] must be a whole number"),
    ("num_experts", [0, 5, 0, True], r"num_experts\[3\] must be a whole number"),
    ("num_experts", 0, "num_experts must be at least 1, got 0"),
    ("num_experts", "5", "num_experts must be a whole number"),
    ("num_experts", None, "num_experts is missing"),
    ("num_experts_per_tok", 6, r"num_experts_per_tok must be in 1\.\.5, got 6"),
    ("num_experts_per_tok", 0, "num_experts_per_tok must be in"),
    ("head_dim", None, "head_dim is missing"),
    ("num_key_value_heads", 3, "num_key_value_heads must be in"),
    ("norms_per_layer", 3, "norms_per_layer must be one of 2, 4; got 3"),
    ("biases", "no", "biases must be true or false, got 'no'"),
    ("gated", 1, "gated must be true or false"),
    ("residual", "fixed", "residual must be true or false"),
    ("learned_position_embeddings", 9, "learned_position_embeddings must be true or false"),
    ("max_position_embeddings", None, "max_position_embeddings is missing"),
    ("intermediate_size", 24.0, "intermediate_size must be a whole number"),
    ("hidden_size", -6, "hidden_size must be at least 1"),
    ("num_hidden_layers", 10**9, "num_hidden_layers must be in"),
    ("vocab_size", [], "vocab_size must be a whole number"),
    ("tie_word_embeddings", 0, "tie_word_embeddings must be true or false"),
]


@pytest.mark.parametrize(("field", "value", "message"), NONSENSE)
def test_nonsense_is_refused_by_its_name(field, value, message, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match=message):
        count({**SMALL, field: value})


def test_positions_that_are_not_learned_need_no_number():
    fields = {**SMALL, "learned_position_embeddings": False, "max_position_embeddings": None}
    assert count(fields).params_by_component["embedding"] == 11 * 6
