"""Transformers' models on this library: their experts on our operators."""

from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_lab.hf.experts import run_experts

__all__ = ["register"]


def register(name: str = "moe_lab") -> str:
    """Add this library to the experts implementations of Transformers, under ``name``; returns the name.

    Then ``model.set_experts_implementation(name)``, or ``experts_implementation=name`` where a model is loaded, runs
    the experts of every family with Transformers' experts interface on `expert_mlp`, for training and inference.

    Example:
        >>> register()
        'moe_lab'

    Raises ValueError for a name that is Transformers' own, or no name.
    """
    taken = ("eager", *(own for own in ALL_EXPERTS_FUNCTIONS if ALL_EXPERTS_FUNCTIONS[own] is not run_experts))
    if not isinstance(name, str) or not name.isidentifier() or name in taken:
        raise ValueError(f"name must be a new identifier, not one of {', '.join(taken)}; got {name!r}")
    ALL_EXPERTS_FUNCTIONS.register(name, run_experts)
    return name
