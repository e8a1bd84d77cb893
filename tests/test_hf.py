"""Our experts in Transformers: the name, absent experts, and what is refused."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_lab import hf

SMALL = MixtralConfig(
    vocab_size=32, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MixtralForCausalLM(SMALL).eval()


def test_what_is_generated_is_the_same(model):
    tokens = torch.arange(6)[None]
    model.set_experts_implementation("eager")
    want = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)
    model.set_experts_implementation(hf.register())
    assert torch.equal(model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0), want)


def test_slots_of_absent_experts_are_empty(model, agree):
    """Transformers' expert parallelism marks them with num_experts and keeps their weights at 0."""
    model.set_experts_implementation("eager")  # the others look for them where Transformers has spread the model
    experts, x = model.model.layers[0].mlp.experts, torch.randn(5, 16)
    index, weights = torch.tensor([[0, 4], [4, 4], [3, 1], [2, 4], [1, 0]]), torch.rand(5, 2)
    agree("y", hf.experts.run_experts(experts, x, index, weights), experts.forward(x, index, weights), 1e-5)
    assert hf.experts.run_experts(experts, x, index, weights)[1].abs().max() == 0


@pytest.mark.parametrize("name", ["eager", "grouped_mm", "", "two words", 7])
def test_refuses_names_that_are_taken_or_none(name, unchecked_shapes):
    with pytest.raises(ValueError, match="name must be a new identifier"):
        hf.register(name)


def test_a_second_name_is_welcome(model):
    assert hf.register("moe_lab_again") == hf.register("moe_lab_again") == "moe_lab_again"
    model.set_experts_implementation("moe_lab_again")


def test_serving_switches_a_model_inside_of_others(model):
    wrapped = torch.nn.ModuleDict({"inner": model})
    assert hf.serve(wrapped) is wrapped
    assert model.config._experts_implementation == "moe_lab"


def test_what_has_no_experts_is_not_served():
    with pytest.raises(ValueError, match=r"families\(\)\), got Linear$"):
        hf.serve(torch.nn.Linear(2, 2))


def test_experts_that_a_config_does_not_reach_are_not_served(model):
    experts = model.model.layers[1].mlp.experts
    experts.config = MixtralConfig(experts_implementation="eager")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.experts \(MixtralExperts\) stays"):
        hf.serve(model)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_that_need_scales_are_refused(model, dtype):
    experts = model.model.layers[0].mlp.experts
    del experts.down_proj
    experts.down_proj = torch.zeros(4, 16, 12).to(dtype)
    with pytest.raises(ValueError, match=r"MixtralExperts\.down_proj must be one float tensor .*cannot be served"):
        hf.serve(model)(torch.arange(6)[None])
