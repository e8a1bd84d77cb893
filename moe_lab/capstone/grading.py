"""Holding a design against a brief, with the lab's own counters, roofline, router table and simulator."""

from moe_lab.accounting.counts import Counts
from moe_lab.accounting.parts import Attention, State
from moe_lab.capstone.briefs import AT_LEAST, AT_MOST, Brief
from moe_lab.capstone.costs import Floor, awake_share, count_design, decode_floor, memory, prefill_floor
from moe_lab.capstone.design import Design
from moe_lab.capstone.report import Report, Row, say_number
from moe_lab.capstone.spread import Spread, place_design, spread
from moe_lab.routers.guarantees import GUARANTEES

OUTSIDE = ("embedding", "output", "vision")
"""Components that are no parameters of layers; `AT_LEAST` leaves them out, or a vocabulary would pass for experts."""
MOST_ROUTED = 1024
"""Tokens of the batch on one device, where nothing but drops is looked at."""
EARLY = ("itself", "earlier tokens")
UNITS = {
    "flops_per_token": "flops",
    "memory_bytes": "bytes",
    "decode_ms": "ms",
    "prefill_ms": "ms",
    "exchange_bytes": "bytes",
    "exchange_ms": "ms",
    "busiest_over_mean": "mean",
    "total_params": "params",
    "active_params": "params",
}
COUNT, SIMULATOR = "ml.count", "parallel.simulator.step_time"
ROOFLINE = "roofline.attainable"


def grade(design: Design, brief: Brief) -> Report:
    """Hold a design against every budget of a brief: a row each, and no word on quality, which no config tells.

    FLOPs, parameters and bytes are counted. Times are predicted by rooflines and rates of links, lower bounds that no
    program reaches: layer by layer all but experts, then the experts of the busiest device, then the exchanges, nothing
    overlapped. Drops and rows by device are the router's own, on a drawn batch of the brief's prompt.

    Example:
        >>> import moe_lab as ml
        >>> from moe_lab.capstone import BRIEFS
        >>> report = grade(Design(ml.published("olmoe-1b-7b").config | {"vocab_size": 32_000}), BRIEFS["laptop"])
        >>> report.broken
        ['memory_bytes', 'decode_ms', 'flops_per_token', 'prefill_ms']

    Raises: see `count_design` and `route`, whose errors name the field; ValueError for more devices than the brief has,
    another vocabulary, and a max_position_embeddings below its context.
    """
    counts = count_design(design)
    _refuse_other_than_asked(design, counts, brief)
    placement = place_design(design, counts, brief)
    tokens = brief.prompt if design.devices > 1 else min(brief.prompt, MOST_ROUTED)
    prompt = spread(design, counts, brief, tokens, placement)
    text = spread(design, counts, brief, brief.sequences, placement)
    found = _numbers(design, counts, brief, prompt, text)
    budgets = [name for name in (*AT_MOST, *AT_LEAST) if getattr(brief, name) is not None]
    rows = [
        Row(name, float(getattr(brief, name)), float(found[name][0]), UNITS[name], *found[name][1:]) for name in budgets
    ]
    return Report(design, brief, (*rows, *_promises(design, counts, brief, prompt)))


def _refuse_other_than_asked(design: Design, counts: Counts, brief: Brief) -> None:
    """What is not a matter of degree: devices, words and places that the brief has."""
    if design.devices > brief.devices:
        raise ValueError(f"devices must be at most {brief.devices}, as many as the brief has; got {design.devices}")
    brief.device.peak(design.dtype)
    words = next((w.shape[0] for w in counts.architecture.weights if w.component == "embedding"), None)
    if words != brief.vocab_size:
        raise ValueError(f"config: vocab_size must be {brief.vocab_size:,}, the brief's; got {words}")
    longest = design.config.get("max_position_embeddings")
    if longest is not None and longest < brief.context:
        raise ValueError(f"config: max_position_embeddings must be at least {brief.context:,}, got {longest:,}")


def _numbers(design: Design, counts: Counts, brief: Brief, prompt: Spread, text: Spread) -> dict[str, tuple]:
    """Each budget's number, its kind, the function that said it, and a remark."""
    layers, a = counts.architecture.moe_layers, counts.architecture
    prefill = prefill_floor(design, counts, brief, prompt.busiest_over_mean, layers * prompt.exchange_ms)
    decode = decode_floor(design, counts, brief, text.busiest_over_mean, layers * text.exchange_ms)
    weights = counts.bytes(design.dtype)
    cache = counts.kv_cache_bytes(brief.context, design.dtype, sequences=brief.sequences)
    awake = f"{awake_share(design, counts, brief.sequences):.0%} of {a.num_experts} experts awake"
    stored = counts.params_by_component
    return {
        "flops_per_token": (counts.flops_per_token(brief.context), "counted", f"{COUNT}(...).flops_per_token"),
        "memory_bytes": (
            memory(design, counts, brief),
            "counted",
            f"{COUNT}(...).bytes, .kv_cache_bytes",
            f"weights of the model {say_number(weights, 'bytes')}, cache {say_number(cache, 'bytes')}",
        ),
        "decode_ms": (decode.ms, "predicted", _source(decode), f"{awake}; {decode.describe()}"),
        "prefill_ms": (prefill.ms, "predicted", _source(prefill), prefill.describe()),
        "exchange_bytes": (layers * prompt.between_bytes, "predicted", SIMULATOR, f"{layers} layers"),
        "exchange_ms": (layers * prompt.exchange_ms, "predicted", SIMULATOR, f"{layers} layers, there and back"),
        "busiest_over_mean": (prompt.busiest_over_mean, "simulated", "ml.route, Placement.route"),
        "total_params": (sum(n for name, n in stored.items() if name not in OUTSIDE), "counted", COUNT),
        "active_params": (counts.active_params, "counted", f"{COUNT}(..., embeddings='none').active_params"),
    }


def _source(floor: Floor) -> str:
    return f"{ROOFLINE}, {SIMULATOR}" if floor.exchange_ms else ROOFLINE


def _promises(design: Design, counts: Counts, brief: Brief, prompt: Spread) -> tuple[Row, ...]:
    """What the router guarantees for all logits, what it did on the batch, and how far attention reaches."""
    guarantee = GUARANTEES[design.method]
    kept = not guarantee.drops and prompt.dropped_fraction == 0
    batch = f"{prompt.dropped_fraction:.1%} dropped in the batch"
    depends = f"{design.method} depends on {guarantee.depends_on}"
    reach = max((_reach(part, brief.context) for part in counts.architecture.parts), default=0)
    return (
        _promise("no token dropped", kept, "guaranteed", "GUARANTEES, ml.measure_balance", batch),
        _promise("causal", guarantee.depends_on in EARLY, "guaranteed", "GUARANTEES", depends),
        _promise("whole context", reach >= brief.context, "counted", COUNT, f"a layer reaches {reach:,} tokens back"),
    )


def _promise(name: str, kept: bool, *known: str) -> Row:
    return Row(name, 1.0, float(kept), "promise", *known)


def _reach(part: object, context: int) -> int:
    """How many tokens back a part carries something: what its mask leaves of attention, everything for a state."""
    if isinstance(part, State):
        return context if part.flops_per_token else 0
    return part.remembered(context) * part.every if isinstance(part, Attention) else 0
