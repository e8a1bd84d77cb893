"""The accountant in Python: its numbers are those of `count`, every size can be counted, and others are refused."""

import json

import pytest
import traitlets

from moe_lab.accounting.counts import count
from moe_lab.models import EMBEDDINGS, published
from moe_lab.widgets import Accountant
from moe_lab.widgets.accountant import (
    CONTEXTS,
    CUSTOM,
    DTYPES,
    MODELS,
    SIZES,
    START,
    describe,
    name_bytes,
    name_number,
    per_cent,
    plain_config,
    times_of,
)

SOME = {"num_layers": 5, "d_model": 1024, "heads": 8, "kv_heads": 2, "d_expert": 384, "num_experts": 24, "top_k": 3}
SOME |= {"num_shared": 2, "vocab_size": 50304}


def custom(**settings):
    return Accountant(CUSTOM, models=[], **settings)


def by_hand(s):
    """Parameters of each part of a plain decoder, from the shapes of its weights."""
    d, layers = s["d_model"], s["num_layers"]
    expert = 3 * d * s["d_expert"]
    attention = 2 * d * 128 * s["heads"] + 2 * d * 128 * s["kv_heads"]
    return {
        "embedding": s["vocab_size"] * d,
        "attention": layers * attention,
        "router": layers * d * s["num_experts"],
        "experts": layers * expert * s["num_experts"],
        "shared_experts": layers * expert * s["num_shared"],
        "norms": layers * 2 * d + d,
        "output": s["vocab_size"] * d,
    }


def test_the_custom_model_is_what_its_sizes_say():
    found, params = custom(**SOME, context=512).tally(), by_hand(SOME)
    assert found["params"] == params
    active = {**params, "experts": params["experts"] * 3 // 24}
    assert found["active"] == active
    assert {part: flops for part, flops in found["flops"].items() if part != "context"} == {
        part: 2 * number for part, number in active.items() if part not in ("embedding", "norms")
    }
    assert found["flops"]["context"] == 5 * 2 * (128 + 128) * 8 * 512
    assert found["bytes"]["cache"] == 5 * 2 * 128 * 2 * 512 * 2
    assert (found["total_params"], found["active_params"]) == (sum(params.values()), sum(active.values()))


@pytest.mark.parametrize("slug", MODELS)
def test_published_models_are_counted(slug):
    widget = Accountant(slug, models=MODELS, context=2**15)
    one, found = published(slug), widget.tally()
    counts = count(slug, embeddings=one.embeddings or "both")
    assert found["total_params"] == counts.total_params and found["active_params"] == counts.active_params
    assert found["flops_per_token"] == counts.flops_per_token(2**15)
    assert found["flops"]["context"] > 0
    assert found["total_bytes"] == counts.bytes("bfloat16") + counts.kv_cache_bytes(2**15, "bfloat16")
    half = one.precision["total_params"] / 2
    assert found["total_params"] == pytest.approx(one.total_params, abs=half, rel=0.03), "what the tick is beside"
    said = widget.summary()
    assert said.startswith(f"{one.name} stores ") and f"Published: {name_number(one.total_params, 3)}, " in said


def test_the_start_is_mixtral():
    ours, theirs = count(plain_config(**START)), count("mixtral-8x7b")
    assert ours.rows(4096) == theirs.rows(4096)
    same = "1.00 times the parameters, 1.00 times the active ones, 1.00 times the FLOPs."
    assert custom().summary().endswith(f"Against the sizes of Mixtral 8x7B: {same}")


def test_memory_follows_num_experts_and_flops_follow_top_k():
    start, experts, choices = (custom(**more).tally() for more in ({}, {"num_experts": 16}, {"top_k": 4}))
    assert experts["params"]["experts"] == 2 * start["params"]["experts"]
    assert experts["active"]["experts"] == start["active"]["experts"]
    assert experts["flops"]["experts"] == start["flops"]["experts"]
    assert choices["params"] == start["params"] and choices["bytes"] == start["bytes"]
    assert choices["flops"]["experts"] == 2 * start["flops"]["experts"]
    said = custom(num_experts=16).summary()
    assert "1.97 times the parameters, 1.00 times the active ones, 1.00 times the FLOPs." in said


def test_context_costs_attention_and_cache_alone():
    short, long = (custom(context=context).tally() for context in (4096, 2**20))
    assert long["flops"]["context"] == 256 * short["flops"]["context"]
    assert long["flops"]["context"] > 0.9 * long["flops_per_token"], "attention takes over"
    assert long["bytes"]["cache"] == 256 * short["bytes"]["cache"]
    same = ("params", "active")
    assert all(long[bar] == short[bar] for bar in same)
    assert {**long["flops"], "context": 0} == {**short["flops"], "context": 0}


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_bits_of_each_number(dtype):
    found, params = custom(**SOME, dtype=dtype).tally(), by_hand(SOME)
    narrow = {"float32": 32, "bfloat16": 16, "float8_e4m3fn": 8, "int4": 4, "mxfp4": 4.25}[dtype]
    wide = 16 if dtype == "mxfp4" else narrow
    rest = sum(params.values()) - params["experts"]
    assert found["bytes"]["experts"] == params["experts"] * narrow / 8
    assert found["bytes"]["other weights"] == rest * wide / 8


def test_training_keeps_16_bytes_a_parameter_and_takes_3_forward_passes():
    rest, train = custom(**SOME, dtype="int4"), custom(**SOME, dtype="int4", mode="training")
    found, params = train.tally(), rest.tally()["total_params"]
    assert found["bytes"] == {
        "weights": 2 * params,
        "gradients": 2 * params,
        "master weights": 4 * params,
        "Adam moments": 8 * params,
    }
    assert found["total_bytes"] == 16 * params
    assert found["flops_per_token"] == 3 * rest.tally()["flops_per_token"]
    assert f"Training keeps {name_bytes(16 * params)}, 16 bytes a parameter." in train.summary()


def test_conventions_count_embeddings():
    words = SOME["vocab_size"] * SOME["d_model"]
    both, output, none = (custom(**SOME, embeddings=one).tally()["active_params"] for one in EMBEDDINGS)
    assert (both - output, output - none) == (words, words)
    assert custom(**SOME).tally()["active_params"] == both
    theirs = Accountant("gpt-oss-120b", models=["gpt-oss-120b"])
    as_published = theirs.tally()
    theirs.embeddings = "output"
    assert published("gpt-oss-120b").embeddings == "output" and theirs.tally() == as_published


def test_every_size_can_be_counted():
    for name, offered in SIZES.items():
        for value in offered:
            sizes = {**START, "num_layers": 1, "num_experts": 512, "heads": 128, name: value}
            sizes = {**sizes, "top_k": min(sizes["top_k"], sizes["num_experts"])}
            sizes = {**sizes, "kv_heads": min(sizes["kv_heads"], sizes["heads"])}
            assert count(plain_config(**sizes)).total_params > 0
    assert {name: value for name, value in START.items() if value not in SIZES[name]} == {}


def test_what_is_sent_is_whole_and_small():
    widget = Accountant()
    assert [one["slug"] for one in widget.models] == list(MODELS)
    largest = {name: offered[-1] for name, offered in SIZES.items()}
    for one in (*widget.models, describe(count(plain_config(**largest)))):
        numbers = [number for row in one["rows"] for number in row[1:]]
        numbers += one["context_flops"] + one["cache_bytes"]
        assert all(type(number) is int and 0 <= 128 * number < 2**53 for number in numbers), "exact in the browser"
        assert len(one["context_flops"]) == len(one["cache_bytes"]) == len(CONTEXTS)
    assert json.loads(json.dumps(widget.models)) == widget.models


def test_summary_repr_and_plain_text():
    widget = Accountant("Mixtral 8x7B")
    assert widget.summary() == (
        "Mixtral 8x7B stores 46.7 B parameters, and a token uses 12.9 B (28 %): memory follows num_experts = 8, FLOPs "
        "follow top_k = 2. At 4,096 tokens of context the router takes 0.01 % of the FLOPs, attention to the context "
        "7.8 %. Weights and cache take 87.5 GiB. Published: 46.7 B, 0.01 % off; 12.9 B active, 0.16 % off."
    )
    assert repr(widget) == f"Accountant: {widget.summary()}"
    data, _metadata = widget._repr_mimebundle_()
    assert data["text/plain"] == repr(widget)


def test_numbers_in_words():
    assert [name_number(n) for n in (0, 1, 999, 1000, 1005, 99_950, 999_500_000, 2 * 10**15)] == [
        "0", "1", "999", "1 K", "1.01 K", "100 K", "1000 M", "2000 T"
    ]  # fmt: skip
    assert [name_bytes(n) for n in (5, 1023, 1024, 1023 * 1024, 3 * 2**50)] == [
        "5 bytes", "1023 bytes", "1 KiB", "1023 KiB", "3 PiB"
    ]  # fmt: skip
    assert [per_cent(part, 1000) for part in (0, 1, 5, 10, 15, 99, 100, 995, 1000, 2500)] == [
        "0", "0.1", "0.5", "1", "1.5", "9.9", "10", "100", "100", "250"
    ]  # fmt: skip
    assert per_cent(1, 20_000) == "0.01" and per_cent(1, 20_001) == "under 0.01"
    assert [times_of(n, 800) for n in (0, 4, 800, 1001)] == ["under 0.01", "0.01", "1.00", "1.25"]


def test_fewer_heads_and_experts_lower_what_depends_on_them():
    widget = custom(kv_heads=32, top_k=7)
    widget.heads, widget.num_experts = 4, 3
    assert (widget.kv_heads, widget.top_k) == (4, 3)
    assert widget.tally()["params"]["experts"] == widget.tally()["active"]["experts"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "mixtral-8x22b", "models": ["mixtral-8x7b"]}, ValueError, r"model must be one of mixtral-8x7b, cus"),
        ({"model": "no-such-model"}, ValueError, r"name must be one of the published models, got 'no-such-model'"),
        ({"num_layers": 129}, ValueError, r"num_layers must be in 1\.\.128, got 129"),
        ({"num_layers": 2.0}, TypeError, r"num_layers must be a whole number, in 1\.\.128; got 2\.0"),
        ({"d_model": 300}, ValueError, r"d_model must be in steps of 256 from 256; got 300"),
        ({"heads": 12}, ValueError, r"heads must be one of 1, 2, 4, 8, 16, 32, 64, 128; got 12"),
        ({"kv_heads": 64}, ValueError, r"kv_heads must be in 1\.\.32, got 64"),
        ({"num_experts": 4, "top_k": 5}, ValueError, r"top_k must be in 1\.\.4, got 5"),
        ({"context": 1000}, ValueError, r"context must be one of 128, 256, .*; got 1000"),
        ({"dtype": "float64"}, ValueError, r"dtype must be one of float32, .*; got 'float64'"),
        ({"embeddings": "input"}, ValueError, r"embeddings must be one of published, both, output, none; got 'input'"),
        ({"mode": "rest"}, ValueError, r"mode must be one of inference, training; got 'rest'"),
        ({"num_heads": 8}, TypeError, r"sizes must be among num_layers, .*; got num_heads"),
    ],
)
def test_bad_arguments_are_named(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        Accountant(**{"model": CUSTOM, "models": [], **options})


def test_bad_assignments_are_refused():
    widget = custom(num_experts=3)
    with pytest.raises(ValueError, match=r"top_k must be in 1\.\.3, got 4"):
        widget.top_k = 4
    with pytest.raises(ValueError, match=r"kv_heads must be in 1\.\.32, got 64"):
        widget.kv_heads = 64
    with pytest.raises(ValueError, match=r"model must be one of custom; got 'mixtral-8x7b'"):
        widget.model = "mixtral-8x7b"
    for name, value in (("d_model", 300), ("context", 5), ("dtype", "int3"), ("mode", "rest")):
        with pytest.raises(traitlets.TraitError, match=f"'{name}' trait"):
            setattr(widget, name, value)
    assert (widget.top_k, widget.kv_heads, widget.model, widget.d_model) == (2, 8, CUSTOM, 4096)
