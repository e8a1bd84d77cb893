"""Training for long: at the end no memory, file or thread more than at the beginning, but for the curve itself."""

import pytest

from moe_lab.checkpoint import latest_checkpoint
from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.train import train

from .growth import WHOLE, check_steady
from .ranks import TEXT, readings_of

pytestmark = pytest.mark.soak

SMALL = LanguageModelConfig(d_model=8, num_layers=1, num_heads=2, context=8, d_expert=4, num_experts=4)
CONFIG = TrainConfig(
    **{"steps": 10_000 if WHOLE else 100, "batch": 2, "warmup": 2, "z_coefficient": 1e-3, "aux_loss": "switch_aux"},
    **{"validate_every": 20, "checkpoint_every": 20},
)
BEGIN, EVERY = (1000, 500) if WHOLE else (40, 20)


def soak(model, config, out):
    """Train, with readings on the way; checkpoints and the curve are written as ever."""
    diary, watch = readings_of(BEGIN, EVERY)
    train(model, config, out, TEXT, watch=watch)
    assert latest_checkpoint(out).name == f"step-{config.steps:06d}"
    return diary


@pytest.mark.usefixtures("unchecked_shapes")
def test_many_steps(tmp_path):
    check_steady(f"training, {CONFIG.steps:,} steps", soak(SMALL, CONFIG, tmp_path))
