"""Which MoE families of the installed Transformers have an experts interface, found by reading their code."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import transformers

HAS_EXPERTS = re.compile(r"use_experts_implementation|num_experts_per_tok|num_local_experts|moe_top_k|\.experts\b")
HAS_THE_INTERFACE = re.compile(r"^@use_experts_implementation", re.MULTILINE)
EXPERTS_CLASS = re.compile(r"^class (\w*(?:Experts?|MoE|Moe)(?:MLP|GLU)?)\(", re.MULTILINE)


@dataclass(frozen=True)
class Family:
    """A family of models with experts; ``reason`` says why it cannot be served, and is empty where it can."""

    name: str
    served: bool
    reason: str


@functools.cache
def families() -> tuple[Family, ...]:
    """Every family of the installed Transformers with experts, and whether `serve` can take it.

    Rule: a family is served if its modelling code puts Transformers' ``use_experts_implementation`` on its experts. The
    others, mostly older ones, call their experts in a way of their own that nothing can be registered for.

    Example:
        >>> [family.reason for family in families() if family.name == "llama4"]
        ['Llama4TextExperts, Llama4TextMoe: without the experts interface of Transformers']
        >>> "mixtral" in [family.name for family in families() if family.served]
        True
    """
    found = []
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        code = path.read_text(encoding="utf-8")
        if HAS_EXPERTS.search(code):
            served = HAS_THE_INTERFACE.search(code) is not None
            classes = ", ".join(EXPERTS_CLASS.findall(code)) or path.stem
            reason = "" if served else f"{classes}: without the experts interface of Transformers"
            found.append(Family(path.parent.name, served, reason))
    return tuple(found)
