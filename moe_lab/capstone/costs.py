"""What a design costs one device: bytes that it holds, and the floor of a pass by the roofline; all predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

from moe_lab.accounting.counts import Counts, count
from moe_lab.capstone.briefs import Brief
from moe_lab.capstone.design import Design
from moe_lab.capstone.report import say_number
from moe_lab.roofline import BYTES, Bound, Cost, attainable, experts_hit

MOST_LAYERS, MOST_EXPERTS = 1000, 1024  # beyond any model that was published, and counted in a second
COUNTED = "none"  # embeddings are left out of what a token is worth


def count_design(design: Design) -> Counts:
    """Count a design's config, embeddings left out of the active parameters.

    Raises: see `count`; ValueError for a model without experts, with another number of them from layer to layer, or
    with two kinds of tokens; more layers or experts than a grader should route.
    """
    layers = design.config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(f"config: num_hidden_layers must be at most {MOST_LAYERS:,} to be graded, got {layers:,}")
    counts = count(design.config, embeddings=COUNTED)
    architecture = counts.architecture
    copies = {weight.copies for weight in architecture.weights if weight.component == "experts"}
    if not architecture.moe_layers or copies != {architecture.num_experts}:
        found = ", ".join(map(str, sorted(copies))) or "none"
        raise ValueError(f"config: every layer with experts must have equally many of them, at least one; got {found}")
    if architecture.num_experts > MOST_EXPERTS:
        raise ValueError(
            f"config: experts must be at most {MOST_EXPERTS:,} a layer to be graded, got {architecture.num_experts:,}"
        )
    if architecture.encoder_decoder:
        raise ValueError(f"config: model_type must be a decoder's, {architecture.model_type!r} has an encoder too")
    return counts


def device_bytes(
    total_params: int,
    expert_params: int,
    num_experts: int,
    places: int,
    devices: int,
    bytes_per_number: int,
    cache_bytes: int,
) -> int:
    """Bytes that each device holds: everything but experts, its share of the experts' places, and its cache.

    bytes_per_number * (total - experts + experts / num_experts * places / devices) + cache. A replica is one more
    place, in every layer.

    Example:
        >>> device_bytes(1_000, 800, num_experts=8, places=12, devices=4, bytes_per_number=2, cache_bytes=50)
        1050
    """
    held = total_params - expert_params + expert_params // num_experts * (places // devices)
    return bytes_per_number * held + cache_bytes


def memory(design: Design, counts: Counts, brief: Brief) -> int:
    """`device_bytes` of a design: its counted parameters, and the cache of the brief's sequences."""
    return device_bytes(
        counts.total_params,
        counts.params_by_component["experts"],
        counts.architecture.num_experts,
        counts.architecture.num_experts + design.extra_experts,
        design.devices,
        BYTES[design.dtype],
        counts.kv_cache_bytes(brief.context, design.dtype, sequences=brief.sequences),
    )


@dataclass(frozen=True)
class Floor:
    """The least time of a pass on the busiest device: all but experts, then experts, then exchanges.

    Each of the first two is a roofline's `Bound`; they follow each other layer by layer, so their times add up.
    """

    rest: Bound
    experts: Bound
    exchange_ms: float

    @property
    def ms(self) -> float:
        """All three."""
        return self.rest.time_ms + self.experts.time_ms + self.exchange_ms

    def describe(self) -> str:
        """The three parts, and which ceiling is theirs."""
        parts = [f"experts {say_number(self.experts.time_ms, 'ms')} ({self.experts.limit})"]
        parts.append(f"all else {say_number(self.rest.time_ms, 'ms')} ({self.rest.limit})")
        if self.exchange_ms:
            parts.append(f"exchanges {say_number(self.exchange_ms, 'ms')}")
        return ", ".join(parts)


def decode_floor(
    design: Design, counts: Counts, brief: Brief, busiest: float | int = 1.0, exchange_ms: float | int = 0.0
) -> Floor:
    """One token for each of the brief's sequences: weights that are awake and the whole cache are read once.

    ``busiest`` is the rows of the busiest device over the mean; it multiplies the experts' FLOPs.
    """
    flops = {name: brief.sequences * n for name, n in counts.flops_per_token_by_component(brief.context).items()}
    cache = counts.kv_cache_bytes(brief.context, design.dtype, sequences=brief.sequences)
    return _floor(design, counts, brief, brief.sequences, flops, cache, busiest, exchange_ms)


def prefill_floor(
    design: Design, counts: Counts, brief: Brief, busiest: float | int = 1.0, exchange_ms: float | int = 0.0
) -> Floor:
    """The brief's prompt at once, logits of every token included: weights are read once and the cache is written."""
    flops = counts.flops_per_sequence_by_component(brief.prompt)
    cache = counts.kv_cache_bytes(brief.prompt, design.dtype)
    return _floor(design, counts, brief, brief.prompt, flops, cache, busiest, exchange_ms)


def awake_share(design: Design, counts: Counts, tokens: int) -> float:
    """The share of a layer's experts that ``tokens`` on each device wake, even routing supposed."""
    a = counts.architecture
    return experts_hit(tokens * design.devices, a.num_experts, a.top_k) / a.num_experts


def _floor(
    design: Design,
    counts: Counts,
    brief: Brief,
    tokens: int,
    flops: Mapping[str, int],
    cache_bytes: int,
    busiest: float | int,
    exchange_ms: float | int,
) -> Floor:
    size, a = BYTES[design.dtype], counts.architecture
    places = (a.num_experts + design.extra_experts) / a.num_experts / design.devices
    read = sum(w.numbers * w.copies for w in a.weights if w.component != "experts" and _is_read(w))
    held = size * counts.params_by_component["experts"] * places
    costs = (
        Cost(float(sum(flops.values()) - flops["experts"]), float(size * read), 0.0, float(cache_bytes), 0.0),
        Cost(float(busiest * flops["experts"]), held * awake_share(design, counts, tokens), 0.0, 0.0, 0.0),
    )
    return Floor(*(attainable(cost, brief.device, design.dtype) for cost in costs), float(exchange_ms))


def _is_read(weight) -> bool:
    """Whether text reads all of it: of an embedding a token reads one row, and there are no images."""
    return weight.use != "lookup" and weight.stream != "image"
