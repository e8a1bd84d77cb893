"""moe-lab: a laboratory for Mixture-of-Experts layers.

Routing -> balance -> experts -> the layer -> a trained model -> lessons. Each name below has an example in
its docstring.
"""

import os

# Before torch loads OpenMP: threads that wait should sleep. Spinning, two of them on two cores make training beside a
# busy browser five times slower than it need be. Set OMP_WAIT_POLICY yourself to have it otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from moe_lab.balance import Balance, BiasBalancer, measure_balance
from moe_lab.corpus import standard_library
from moe_lab.experts import expert_mlp
from moe_lab.layers import MoE
from moe_lab.lesson import check, hint, progress, start
from moe_lab.lm import LanguageModel, LanguageModelConfig, load_model
from moe_lab.routers import METHODS, route
from moe_lab.show import show
from moe_lab.types import Routing

__all__ = [
    "METHODS",
    "Balance",
    "BiasBalancer",
    "LanguageModel",
    "LanguageModelConfig",
    "MoE",
    "Routing",
    "check",
    "expert_mlp",
    "hint",
    "load_model",
    "measure_balance",
    "progress",
    "route",
    "show",
    "standard_library",
    "start",
]
