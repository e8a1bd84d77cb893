"""moe-lab: a laboratory for Mixture-of-Experts layers.

Routing -> balance -> experts -> the layer -> a trained model -> lessons. Each name has an example in its docstring.
Names are loaded when they are first used, so that ``python -m moe_lab doctor`` can speak on a machine without torch.
"""

import importlib
import os
from importlib.metadata import PackageNotFoundError, version

# Before torch loads OpenMP: threads that wait should soon sleep. Spinning as long as they please, two of them on two
# cores make training beside any other work five times slower than it need be (LOG.md). Yours to set otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOME = {
    # the layer
    "Routing": "types",
    "METHODS": "routers",
    "route": "routers",
    "GUARANTEES": "routers.guarantees",
    "disturb": "routers.guarantees",
    "Balance": "balance",
    "measure_balance": "balance",
    "tile_padding": "balance",
    "device_load": "balance",
    "losses": "losses",
    "BiasBalancer": "balancers",
    "PriceBalancer": "balancers",
    "Certificate": "certificate",
    "certify": "certificate",
    "expert_mlp": "experts",
    "MoE": "layers",
    # on several ranks
    "ExpertParallel": "parallel.style",
    "run_ranks": "parallel.launch",
    "Placement": "parallel.placement",
    "place_experts": "parallel.placement",
    # what it costs
    "count": "accounting.counts",
    "flop_counter": "accounting.counter",
    "published": "models",
    "published_models": "models",
    # a trained model
    "standard_library": "corpus",
    "LanguageModelConfig": "config",
    "LanguageModel": "lm",
    "load_model": "lm",
    # models of Transformers
    "hf": "hf",
    # lessons
    "start": "lesson",
    "check": "lesson",
    "hint": "lesson",
    "solution": "lesson",
    "progress": "lesson",
    "show": "figures",
}

__all__ = list(_HOME)

try:
    __version__ = version("moe-lab")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0"


def __getattr__(name: str):
    """Load a public name from its module, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'moe_lab' has no attribute {name!r}")
    module = importlib.import_module(f"moe_lab.{_HOME[name]}")
    value = module if name == _HOME[name] else getattr(module, name)  # `losses` is a module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
