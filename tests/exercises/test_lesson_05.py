"""Lesson 05: the numbers that the exercises give as examples."""

import moe_lab as ml

from ..mutants.answers_05 import active, conventions, step, utilisation


def test_the_examples_in_the_lesson_are_right():
    tiny = {"vocab_size": 10, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1}
    tiny |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 2, "tie_word_embeddings": False}
    assert active(tiny | {"num_local_experts": 3, "num_experts_per_tok": 1}) == 240
    assert step(10, 4, 8, 8, 2, 0, False) == (4480, 8960) and step(10, 4, 8, 8, 2, 0, True) == (4480, 8320)
    assert conventions(ml.published("gpt-oss-120b").config, 5_130_000_000, 10_000_000) == ["output"]
    assert round(utilisation(ml.published("mixtral-8x7b").config, 4096, 9, 8, 989.4e12), 3) == 0.371
