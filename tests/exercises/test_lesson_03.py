"""Lesson 03: the loss in the exercise and the one in the lesson are one."""

import pytest
import torch

from ..mutants.answers_03 import aux_loss


def test_the_loss_by_hand_is_the_one_in_the_lesson():
    """Rows 4 2 2, 4 3 1, 2 1 1, 1 1 2 over their sums: f = 3/4, 0, 1/4 and P = 7/16, 9/32, 9/32."""
    logits = torch.tensor([[4.0, 2, 2], [4, 3, 1], [2, 1, 1], [1, 1, 2]]).log()
    assert float(aux_loss(logits, torch.tensor([[0], [0], [0], [2]]))) == pytest.approx(3 * (21 / 64 + 9 / 128))
