"""What only `make soak` has the time for: other balancers, and training on ranks."""

import dataclasses

import pytest

from moe_lab.parallel.launch import run_ranks

from .growth import check_steady
from .ranks import watch_on_ranks
from .test_training import BEGIN, CONFIG, EVERY, SMALL, soak

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("balancer", ["midpoint", "quantile", "bip"])
def test_other_balancers(balancer, tmp_path):
    model = dataclasses.replace(SMALL, balancer=balancer)
    config = dataclasses.replace(CONFIG, steps=3000, aux_loss="gshard")
    check_steady(f"training, balancer {balancer}", soak(model, config, tmp_path))


def test_on_two_ranks(tmp_path):
    config = dataclasses.replace(CONFIG, steps=3000)
    for rank, diary in enumerate(run_ranks(watch_on_ranks, 2, tmp_path, SMALL, config, BEGIN, EVERY, timeout_s=600)):
        check_steady(f"training, rank {rank} of 2", diary)
