"""moe-lab: a laboratory for Mixture-of-Experts layers.

Routing -> balance -> experts -> the layer. Each name below has an example in its docstring.
"""

from moe_lab.balance import Balance, BiasBalancer, measure_balance
from moe_lab.experts import expert_mlp
from moe_lab.layers import MoE
from moe_lab.routers import METHODS, route
from moe_lab.types import Routing

__all__ = [
    "METHODS",
    "Balance",
    "BiasBalancer",
    "MoE",
    "Routing",
    "expert_mlp",
    "measure_balance",
    "route",
]
