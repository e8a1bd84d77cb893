"""The design that lesson 15 builds step by step, and the published models that it starts from."""

from moe_lab.capstone.design import Design
from moe_lab.models import published

LAPTOP_SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 64,
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 12,
}


def laptop_design(**fields: object) -> Design:
    """A design that keeps the brief "laptop": Qwen3's layers in small; ``fields`` of its config can be replaced.

    Example:
        >>> laptop_design(num_experts=128).config["num_experts"]
        128
    """
    return Design({**published("qwen3-30b-a3b").config, **LAPTOP_SIZES, **fields})


def published_design(name: str, vocab_size: int, **options: object) -> Design:
    """A published model as it is but for its vocabulary, which is the brief's; ``options`` are those of a `Design`.

    Example:
        >>> published_design("olmoe-1b-7b", 32_000, dtype="float32").dtype
        'float32'
    """
    return Design({**published(name).config, "vocab_size": vocab_size}, **options)
