"""Findings that follow from configs of published models in data/models: sizes, and FLOPs of their MoE layers."""

from collections.abc import Callable
from pathlib import Path

from moe_lab.accounting.counts import count
from moe_lab.accounting.layer import PassFlops, dense_flops, layer_flops
from moe_lab.models import Published, read_published
from moe_lab.scoreboard.facts import Finding

DEEPSPEED = ("350m-moe-128", "1.3b-moe-128", "pr-moe-350m-32-64", "pr-moe-1.3b-64-128")
DEEPSPEED += ("moe-2.4b", "moe-8b", "moe-24b", "moe-47b")
LAYERS = ("mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "deepseek-v3")


def deepspeed_sizes(data: Path) -> Finding | None:
    """How far our counts of DeepSpeed-MoE's models lie from the printed ones, beyond the last printed digit."""

    def beyond(model: Published) -> float:
        off = abs(count(model.config).total_params - model.total_params)
        return max(0.0, off - model.precision["total_params"] / 2) / model.total_params

    slugs = tuple(f"deepspeed-{name}" for name in DEEPSPEED)
    return _over(data, slugs, beyond, unit="%", about="off the printed size, beyond its last digit")


def against_every_expert(data: Path) -> Finding | None:
    """FLOPs of a layer that runs every expert for every token, over those of the MoE layer."""

    def ratio(model: Published) -> float:
        sizes, experts, top_k = _layer(model)
        every, moe = (_forward(num_experts=experts, top_k=k, **sizes) for k in (experts, top_k))
        return every / moe

    return _over(data, LAYERS, ratio, digits=1)


def against_dense(data: Path) -> Finding | None:
    """FLOPs of the dense layer as wide as what a token visits, over those of the MoE layer, router included."""

    def ratio(model: Published) -> float:
        sizes, experts, top_k = _layer(model)
        return dense_flops(1, top_k=top_k, **sizes).forward / _forward(num_experts=experts, top_k=top_k, **sizes)

    return _over(data, LAYERS, ratio, digits=3)


def _layer(model: Published) -> tuple[dict[str, int], int, int]:
    """Sizes of a MoE layer, its experts, and how many of them a token visits."""
    config, found = model.config, count(model.config).architecture
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    sizes = {"d_model": found.d_model, "d_expert": width, "num_shared": config.get("n_shared_experts", 0)}
    return sizes, found.num_experts, found.top_k


def _forward(**sizes: int) -> int:
    return sum(layer_flops(1, **sizes).values(), PassFlops()).forward


def _over(
    data: Path, slugs: tuple[str, ...], value: Callable[[Published], float], **about: str | int
) -> Finding | None:
    """One value a model; None unless all of their files are there."""
    paths = [data / "models" / f"{slug}.json" for slug in slugs]
    if not all(path.is_file() for path in paths):
        return None
    models = [read_published(path) for path in paths]
    files = tuple(str(path.relative_to(data)) for path in paths)
    return Finding("counted", {model.name: value(model) for model in models}, files=files, **about)
