"""The grid of lesson 10: dense models against MoEs of the same FLOPs a step, each run with its full schedule.

``python -m moe_lab experiment dense_vs_moe`` trains what is missing in its folder and writes the record. Four parts:

- ``tuning``: one seed over learning rates, for each arm; it sets ``learning_rate``.
- ``race``: a dense run of N steps against MoE runs of N/4, N/7, N/10 and N/14, three seeds.
- ``scaling``: sizes times experts, all equally long, for the fit of `scaling_law`.
- ``architectures``: Switch, top-2, fine-grained, shared, residual and pyramid experts, and other ways of choosing.

All arms see the same batches in the same order, and FLOPs a step are equal: a router costs products, so experts are as
much narrower than the dense layer as pays for them.
"""

import dataclasses
from dataclasses import dataclass

from moe_lab.config import LanguageModelConfig, TrainConfig
from moe_lab.experiments.runner import Run

EXPERTS_OF_ARCHITECTURES = 16
PARTS = ("tuning", "race", "scaling", "architectures")
BY_BIAS = {"method": "top_k", "router_options": {"score": "softmax"}, "balancer": "sign", "bias_rate": 1e-3}
BY_LOSS = {"bias_rate": 0.0, "method": "switch"}


@dataclass(frozen=True)
class Preset:
    """Sizes and lengths of a grid; ``sizes`` is a dense layer's (d_model, d_expert, heads) by name."""

    sizes: dict[str, tuple[int, int, int]]
    num_layers: int  # two in `architectures`
    context: int
    batch: int
    steps: int  # N, of the dense run in the race
    shorter: tuple[int, ...]  # MoE runs take N over each of these
    grid_steps: int  # of every run in `scaling` and `architectures`
    experts: tuple[int, ...]  # of `scaling`; the last one races
    seeds: tuple[int, ...]  # of the race
    grid_seeds: tuple[int, ...]  # of `scaling` and `architectures`
    rates: tuple[float, ...]  # learning rates that `tuning` tries
    learning_rate: dict[str, float]  # the best of them for each arm
    device: str = "cpu"
    precision: str = "float32"


PRESETS = {
    "laptop": Preset(
        sizes={"x1/4": (8, 64, 2), "x1": (16, 128, 2), "x4": (32, 256, 2)},
        num_layers=1,
        context=64,
        batch=32,
        steps=12_000,
        shorter=(4, 7, 10, 14),
        grid_steps=1000,
        experts=(1, 2, 4, 8, 16, 32, 64),
        seeds=(0, 1, 2),
        grid_seeds=(0, 1, 2),
        rates=(2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
        learning_rate={"dense": 5e-3, "moe": 2e-2},
    ),
    "quick": Preset(
        sizes={"x1": (16, 128, 2)},
        num_layers=1,
        context=64,
        batch=32,
        steps=1400,
        shorter=(4, 7),
        grid_steps=50,
        experts=(1, 8, 64),
        seeds=(0,),
        grid_seeds=(0,),
        rates=(1e-2,),
        learning_rate={"dense": 5e-3, "moe": 2e-2},
    ),
    "gpu": Preset(  # 34 M dense parameters, 1.6 G with 64 experts
        sizes={"x1": (512, 2048, 8)},
        num_layers=8,
        context=512,
        batch=64,
        steps=4000,
        shorter=(4, 7, 10),
        grid_steps=400,
        experts=(1, 8, 64),
        seeds=(0,),
        grid_seeds=(0,),
        rates=(5e-4, 1e-3, 2e-3),
        learning_rate={"dense": 1e-3, "moe": 1e-3},
        device="cuda",
        precision="bfloat16",
    ),
}


def matched_width(d_expert: int, experts_by_layer: list[int], chosen: int, mixes: bool = False) -> int:
    """Width of an expert with which a token costs what it costs in dense layers ``d_expert`` wide, routers included.

    A layer of E experts spends 2 d_model E FLOPs a token on its router, 4 d_model more where it mixes in shared ones,
    and 6 d_model times their width on each of the ``chosen`` experts; a dense one 6 d_model ``d_expert``.

    Example:
        >>> matched_width(128, [64, 64], chosen=1), matched_width(128, [1, 1], chosen=1)
        (107, 128)

    Raises ValueError where the routers alone cost more than that.
    """
    layers = len(experts_by_layer)
    left = 3 * d_expert * layers - sum(experts_by_layer) - 2 * mixes * layers
    width = round(left / (3 * chosen * layers))
    if width < 1:
        raise ValueError(f"d_expert={d_expert} does not pay for routers of {experts_by_layer} experts")
    return width


def make_run(preset: Preset, name: str, size: str, steps: int, seed: int, rate: float, **arm) -> Run:
    """A run of the grid; ``arm`` holds the fields of the model that set it apart, and ``aux_loss`` if it needs one."""
    d_model, d_expert, num_heads = preset.sizes[size]
    sizes = {"d_model": d_model, "d_expert": d_expert, "num_heads": num_heads, "context": preset.context}
    dense = {"num_layers": preset.num_layers, "num_experts": 0, "top_k": 1, "bias_rate": 0.0}
    aux_loss = arm.pop("aux_loss", "")
    model = LanguageModelConfig(**sizes, **{**dense, **arm})
    if any(model.experts_by_layer):
        chosen = model.top_k + model.num_shared
        width = matched_width(d_expert, model.experts_by_layer, chosen, model.mix_shared)
        model = dataclasses.replace(model, d_expert=width)
    train = {"batch": preset.batch, "steps": steps, "seed": seed, "learning_rate": rate, "aux_loss": aux_loss}
    machine = {"device": preset.device, "precision": preset.precision}
    often = {"warmup": min(100, steps // 10), "validate_every": max(50, steps // 40), "checkpoint_every": 500}
    return Run(name, model, TrainConfig(**train, **machine, **often))


def architectures(num_experts: int) -> dict[str, dict]:
    """What the architectures change, by name; each token's experts cost the same in all of them."""
    drops = {capacity: {"score": "softmax", "capacity_factor": capacity} for capacity in (1.0, 1.25, 2.0)}
    return {
        "dense": {},
        "top-1": {"num_experts": num_experts, **BY_BIAS},
        **{
            f"Switch, capacity {capacity}": {
                "num_experts": num_experts,
                **BY_LOSS,
                "router_options": options,
                "aux_loss": "switch_aux",
            }
            for capacity, options in drops.items()
        },
        "top-2": {"num_experts": num_experts, "top_k": 2, **BY_BIAS},
        "fine-grained, top-4": {"num_experts": 4 * num_experts, "top_k": 4, **BY_BIAS},
        "one shared, top-1": {"num_experts": num_experts, "num_shared": 1, **BY_BIAS},
        "residual": {"num_experts": num_experts, "num_shared": 1, "mix_shared": True, **BY_BIAS},
        "pyramid, residual": {
            "num_experts": num_experts,
            "pyramid": [num_experts // 2, num_experts],
            "num_shared": 1,
            "mix_shared": True,
            **BY_BIAS,
        },
        "expert choice": {
            "num_experts": num_experts,
            "method": "expert_choice",
            "router_options": {"score": "sigmoid"},
            "eval_method": "top_k",
        },
        "balanced": {
            "num_experts": num_experts,
            "method": "balanced",
            "router_options": {"score": "sigmoid", "objective": "score"},
            "balancer": "midpoint",
            "bias_rate": 0.5,
            "eval_method": "top_k",
        },
    }


def make_runs(preset: Preset, part: str) -> list[Run]:
    """The runs of one part of the grid."""
    makers = {
        "tuning": _tuning,
        "race": _race,
        "scaling": _scaling,
        "architectures": _architectures,
    }
    if part not in makers:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; got {part!r}")
    return makers[part](preset)


def _racers(preset: Preset) -> list[tuple[str, int, dict]]:
    """Arm, steps and fields of every run in the race."""
    moe = {"num_experts": preset.experts[-1], **BY_BIAS}
    return [("dense", preset.steps, {}), *(("moe", preset.steps // n, moe) for n in preset.shorter)]


def _race(preset: Preset) -> list[Run]:
    return [
        make_run(preset, f"race-{arm}-{steps}-{seed}", "x1", steps, seed, preset.learning_rate[arm], **fields)
        for seed in preset.seeds
        for arm, steps, fields in _racers(preset)
    ]


def _tuning(preset: Preset) -> list[Run]:
    seed = 100  # not one of those that race
    arms = {
        arm: (steps, fields) for arm, steps, fields in _racers(preset) if steps in (preset.steps, preset.steps // 7)
    }
    return [
        make_run(preset, f"tuning-{arm}-{rate:g}", "x1", steps, seed, rate, **fields)
        for arm, (steps, fields) in arms.items()
        for rate in preset.rates
    ]


def _scaling(preset: Preset) -> list[Run]:
    return [
        make_run(
            preset,
            f"scaling-{size.replace('/', '_')}-{experts}-{seed}",
            size,
            preset.grid_steps,
            seed,
            preset.learning_rate["moe" if experts > 1 else "dense"],
            num_experts=experts,
            **BY_BIAS,
        )
        for seed in preset.grid_seeds
        for size in preset.sizes
        for experts in preset.experts
    ]


def _architectures(preset: Preset) -> list[Run]:
    return [
        make_run(
            preset,
            f"architectures-{number:02d}-{seed}",
            "x1",
            preset.grid_steps,
            seed,
            preset.learning_rate["moe" if fields else "dense"],
            **{"num_layers": 2, **fields},  # a pyramid has a base and a top
        )
        for seed in preset.grid_seeds
        for number, fields in enumerate(architectures(EXPERTS_OF_ARCHITECTURES).values())
    ]
