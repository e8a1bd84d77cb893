"""The small language model: causal, readable, saved and loaded, and clear about damage."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_lab import LanguageModel, LanguageModelConfig, load_model
from moe_lab.layers import FeedForward

TINY = LanguageModelConfig(d_model=16, num_layers=2, num_heads=2, context=32, d_expert=8, num_experts=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LanguageModel(TINY).eval()
    torch.nn.init.normal_(model.head.weight)  # it starts at 0, which would hide everything
    return model


def test_untrained_it_knows_nothing():
    torch.manual_seed(1)
    logits = LanguageModel(TINY)(torch.randint(256, (3, 20)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(256, (60,)))
    assert loss.item() == pytest.approx(math.log(256))


def test_no_byte_sees_a_later_one(model):
    one, other = torch.randint(256, (1, 20)), torch.randint(256, (1, 20))
    other[:, :11] = one[:, :11]
    torch.testing.assert_close(model(one)[:, :11], model(other)[:, :11])
    assert not torch.allclose(model(one)[:, 11:], model(other)[:, 11:])


def test_read_routes_every_byte_in_every_layer(model):
    routings = model.read("naïve 🙂")
    assert [routing.tokens for routing in routings] == [len("naïve 🙂".encode())] * 2
    assert all(int(routing.load.sum()) == routing.tokens * 2 for routing in routings)
    assert [routing.tokens for routing in model.read("")] == [0, 0]
    with pytest.raises(ValueError, match="at most context=32 bytes, got 33"):
        model.read("x" * 33)


def test_write_goes_on_past_the_context(model):
    greedy = model.write("def ", 40)
    assert len(greedy.encode()) >= 40
    assert greedy == model.write("def ", 40)
    assert model.write("def ", 40, temperature=1.0, seed=1) != model.write("def ", 40, temperature=1.0, seed=2)


def test_saved_and_loaded_is_the_same_model(model, tmp_path):
    model.save(tmp_path)
    text = torch.randint(256, (2, 16))
    assert torch.equal(load_model(tmp_path)(text), model(text))
    model.save(tmp_path / "half", dtype=torch.float16)
    assert load_model(tmp_path / "half").position.dtype == torch.float32
    torch.testing.assert_close(load_model(tmp_path / "half")(text), model(text), atol=0.05, rtol=0.05)


def test_damage_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*config.json"):
        load_model(tmp_path / "nowhere")
    model.save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole_config, whole_weights = config.read_text(), weights.read_bytes()

    config.write_text(whole_config[:40])
    with pytest.raises(ValueError, match=r"config.json is not valid JSON .* cut off"):
        load_model(tmp_path)
    config.write_text("[1]")
    with pytest.raises(ValueError, match=r"must hold a JSON object, it holds a list"):
        load_model(tmp_path)
    config.write_text(json.dumps({**json.loads(whole_config), "colour": 1}))
    with pytest.raises(ValueError, match=r"config.json has the unknown field 'colour'"):
        load_model(tmp_path)
    fewer = {name: value for name, value in json.loads(whole_config).items() if name != "method"}
    config.write_text(json.dumps(fewer))
    with pytest.raises(ValueError, match=r"config.json lacks the field 'method'"):
        load_model(tmp_path)
    config.write_text(json.dumps({**json.loads(whole_config), "num_heads": 3}))
    with pytest.raises(ValueError, match=r"config.json: num_heads must divide d_model=16, got 3"):
        load_model(tmp_path)
    config.write_text(json.dumps({**json.loads(whole_config), "d_expert": 9}))
    with pytest.raises(ValueError, match=r"do not fit its config.json[\s\S]*w_gate_up"):
        load_model(tmp_path)
    config.write_text(whole_config)

    for cut in (0, 7, len(whole_weights) // 2, len(whole_weights) - 1):
        weights.write_bytes(whole_weights[:cut])
        with pytest.raises(ValueError, match=r"model.safetensors is damaged .* cut off"):
            load_model(tmp_path)
    weights.write_bytes(whole_weights)
    tensors = load_file(weights)
    del tensors["norm.weight"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"do not fit its config.json[\s\S]*norm.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(d_model=0), "d_model must be in 1..1048576, got 0"),
        (dict(d_model="8"), "d_model must be a whole number, in 1..1048576; got '8'"),
        (dict(top_k=True), "top_k must be a whole number, in 1..16; got True"),
        (dict(top_k=17), "top_k must be in 1..16, got 17"),
        (dict(num_shared=-1), "num_shared must be in 0..1024, got -1"),
        (dict(num_heads=3), "num_heads must divide d_model=128, got 3"),
        (dict(bias_rate=-1.0), "bias_rate must be a finite number of at least 0, got -1.0"),
    ],
)
def test_config_refuses(change, says, unchecked_shapes):
    with pytest.raises((ValueError, TypeError), match=says):
        LanguageModelConfig(**change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(method="best"), "method must be one of .*; got 'best'"),
        (dict(method="hash"), "method 'hash' needs token_ids, which the model cannot give"),
        (dict(method="expert_choice"), "method 'expert_choice' takes no bias; set bias_rate to 0, got 0.01"),
        (dict(method="switch"), "top_k must be 1 for method 'switch', got 2"),
    ],
)
def test_a_method_that_cannot_work_is_refused_at_once(change, says):
    with pytest.raises(ValueError, match=says):
        LanguageModel(dataclasses.replace(TINY, **change))


def test_reading_and_writing_refuse(model, tmp_path, unchecked_shapes):
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        model.read(b"hi")
    with pytest.raises(ValueError, match="temperature must be a finite number of at least 0, got -1"):
        model.write("a", 1, temperature=-1)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        model.write("a", -1)
    with pytest.raises(ValueError, match=r"dtype must be a floating-point dtype, got torch.int8"):
        model.save(tmp_path, dtype=torch.int8)
    assert len(model.write("a", 5, temperature=1e-40).encode()) >= 5


def test_dense_layers_and_pyramids():
    """`layers` holds the MoEs alone, and every layer has the experts that the config gives it."""
    dense = LanguageModel(dataclasses.replace(TINY, num_experts=0))
    assert dense.layers == [] and dense.read("hi") == []
    config = dataclasses.replace(TINY, num_layers=3, pyramid=[0, 4, 8], num_shared=1, mix_shared=True)
    pyramid = LanguageModel(config)
    assert [layer.num_experts for layer in pyramid.layers] == [4, 8]
    assert isinstance(pyramid.blocks[0].moe, FeedForward)
    text = torch.randint(256, (2, 5))
    with torch.no_grad():
        pyramid.head.weight.normal_()
    assert pyramid(text).isfinite().all() and len(pyramid.read("hi")) == 2


def test_a_pyramid_is_saved_and_loaded(tmp_path):
    config = dataclasses.replace(TINY, num_layers=2, pyramid=[0, 4], num_shared=1, mix_shared=True)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    model.save(tmp_path)
    text = torch.randint(256, (2, 5))
    assert torch.equal(load_model(tmp_path)(text), model(text))
