"""Switching models of Transformers to our experts: the name to register, and a model that is held to it."""

from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_lab.hf.experts import experts_of, run_experts
from moe_lab.hf.families import families


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


def serve(model: nn.Module) -> nn.Module:
    """Register this library and switch a model's experts to it, wherever in the model they are; returns the model.

    ``model.set_experts_implementation`` says nothing where a family has no experts interface, and the model goes on as
    before. This refuses it. `families` lists which can be served.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = dict(hidden_size=16, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1)
        >>> model = MixtralForCausalLM(MixtralConfig(vocab_size=8, num_hidden_layers=1, **sizes))
        >>> serve(model).config._experts_implementation
        'moe_lab'

    Raises ValueError for a model without experts that Transformers' interface reaches.
    """
    name = register()
    if not experts_of(model):
        served = sum(family.served for family in families())
        raise ValueError(
            f"model must be of a family with Transformers' experts interface ({served} are: moe_lab.hf.families()), "
            f"got {type(model).__name__}{_why_not(model)}"
        )
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.set_experts_implementation(name)
    for path, experts in experts_of(model).items():
        if experts.config._experts_implementation != name:
            kind = type(experts).__name__
            raise ValueError(f"model must let its experts be switched; {path} ({kind}) stays with its own")
    return model


def _why_not(model: nn.Module) -> str:
    folder = type(model).__module__.split(".")[-2:-1]
    return "".join(f": {family.reason}" for family in families() if [family.name] == folder)
