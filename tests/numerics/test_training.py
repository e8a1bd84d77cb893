"""A training step that meets infinity or NaN says at which step, where, and what to do."""

import dataclasses
import math

import pytest
import torch

from moe_lab import LanguageModel, LanguageModelConfig, load_model
from moe_lab.config import TrainConfig
from moe_lab.train import Diverged, Trainer

TINY = LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, context=16, d_expert=8, num_experts=4)
DENSE = dataclasses.replace(TINY, num_experts=0, top_k=1)
ADVICE = r"; is learning_rate=0\.003 too high\? The last checkpoint is kept$"


def trained(config=TINY, **options):
    trainer = Trainer(config, TrainConfig(steps=4, batch=2, **options))
    trainer.step()
    return trainer


def put(model, name, value):
    with torch.no_grad():
        dict(model.named_parameters())[name].fill_(value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_named_with_its_step_and_changes_no_weight(value):
    trainer = trained()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    handle = trainer.model.blocks[0].moe.w_down.register_hook(lambda gradient: gradient.fill_(value))
    with pytest.raises(
        Diverged, match=r"^training diverged at step 1: loss \d.*, gradient norm (inf|nan), first in "
    ) as found:
        trainer.step()
    assert "blocks.0.moe.w_down" in str(found.value) or math.isnan(value)  # NaN as a norm spreads to all
    assert str(found.value).endswith("; is learning_rate=0.003 too high? The last checkpoint is kept")
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert trainer.history.steps == 1
    handle.remove()
    assert math.isfinite(trainer.step())


def test_gradients_whose_norm_alone_overflows_blame_none():
    trainer = trained()
    trainer.model.head.weight.register_hook(lambda gradient: torch.full_like(gradient, 1e25))
    with pytest.raises(Diverged, match=r"at step 1: loss \d\.\d+, gradient norm inf" + ADVICE):
        trainer.step()


@pytest.mark.parametrize("value", [math.inf, math.nan, 3e38])
def test_a_router_that_meets_nan_stops_the_run_with_its_step(value):
    """Its own refusal knows which token and expert, and the trainer the rest."""
    trainer = trained()
    put(trainer.model, "blocks.0.moe.router", value)
    with pytest.raises(Diverged, match=r"at step 1: logits must be finite, logits\[\d+, \d+\] is (nan|-?inf)" + ADVICE):
        trainer.step()
    with pytest.raises(Diverged, match="at step 1: logits must be finite"):
        trainer.validate()


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.attention.qkv.weight", "norm.weight"])
def test_weights_that_are_not_finite_stop_the_next_step(name):
    trainer = trained()
    put(trainer.model, name, math.nan)
    with pytest.raises(Diverged, match=r"diverged at step 1: .*" + ADVICE):
        trainer.step()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("config", [TINY, DENSE], ids=["moe", "dense"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_of_nan_writes_nothing(config, temperature, value):
    """The greatest of NaNs is the first byte, which is a byte like any other."""
    model = LanguageModel(config).eval()
    put(model, "head.weight", value)
    with pytest.raises(ValueError, match="logits of byte 0 are not finite; the weights must be"):
        model.write("hi", 3, temperature=temperature)


def test_large_logits_and_low_temperatures_write_as_ever():
    model = LanguageModel(TINY).eval()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(1e30)
    assert model.write("hi", 3, temperature=1e-300) == model.write("hi", 3) != ""


def test_what_a_narrow_dtype_cannot_hold_is_refused_and_counts_stay_whole(tmp_path):
    model = LanguageModel(dataclasses.replace(TINY, bias_rate=0.1, balancer="midpoint"))
    updates = 2**24 + 1  # float32 has no such number, and float16 ends at 65504
    model.blocks[0].moe.balancer.updates.fill_(updates)
    for dtype in (torch.float16, torch.bfloat16, None):
        model.save(tmp_path, dtype=dtype)
        assert int(load_model(tmp_path).blocks[0].moe.balancer.updates) == updates
    with torch.no_grad():
        model.head.weight[3, 4] = -1e5
    model.save(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"dtype torch\.float16 cannot hold head\.weight, whose largest number is 1e\+05"
    ):
        model.save(tmp_path, dtype=torch.float16)
    assert load_model(tmp_path).head.weight[3, 4].item() == pytest.approx(-1e5, rel=1e-2)  # what was there is there
