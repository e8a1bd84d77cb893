"""What the experts of a layer cost in FLOPs and bytes, and what a device allows at best."""

import math
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from moe_lab.balance import check_load
from moe_lab.checks import check_number, check_size, check_whole
from moe_lab.roofline.devices import BYTES, Device, check_dtype

DIRECTIONS = ("forward", "training")


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a layer's experts, each with gate, up and down projection (SwiGLU): 3 * d_model * d_expert weights.

    Example:
        >>> shape = LayerShape(d_model=4096, d_expert=14336, num_experts=8, top_k=2)
        >>> shape.expert_weights, shape.dense.d_expert
        (176160768, 28672)

    Raises ValueError or TypeError for sizes that are not whole numbers above 0 and top_k above num_experts.
    """

    d_model: int
    d_expert: int
    num_experts: int
    top_k: int

    def __post_init__(self):
        for name in ("d_model", "d_expert", "num_experts"):
            check_size(name, getattr(self, name), 1)
        check_whole("top_k", self.top_k, 1, self.num_experts)

    @property
    def expert_weights(self) -> int:
        """Weights of one expert."""
        return 3 * self.d_model * self.d_expert

    @property
    def dense(self) -> "LayerShape":
        """The dense layer of equal FLOPs: one expert of width top_k * d_expert, which every token visits."""
        return LayerShape(self.d_model, self.top_k * self.d_expert, 1, 1)


SHAPES = {
    "Mixtral 8x7B": LayerShape(4096, 14336, 8, 2),
    "Qwen3-30B-A3B": LayerShape(2048, 768, 128, 8),
    "OLMoE-1B-7B": LayerShape(2048, 1024, 64, 8),
    "DeepSeek-V3": LayerShape(7168, 2048, 256, 8),
    "gpt-oss-120b": LayerShape(2880, 2880, 128, 4),
}
"""Routed experts of one layer of published models; shared experts are not among them."""


@dataclass(frozen=True)
class Cost:
    """FLOPs and compulsory bytes of one pass through a layer's experts; see `expert_cost`."""

    flops: float
    weight_bytes: float
    gradient_bytes: float
    token_bytes: float
    saved_bytes: float

    @property
    def bytes(self) -> float:
        """All bytes that must cross between chip and memory."""
        return self.weight_bytes + self.gradient_bytes + self.token_bytes + self.saved_bytes

    @property
    def intensity(self) -> float:
        """FLOP/byte."""
        return self.flops / self.bytes


def tokens_per_expert(tokens: int, num_experts: int, top_k: int) -> float:
    """Rows that an expert sees on average: tokens * top_k / num_experts, the batch size that its product has.

    Example:
        >>> tokens_per_expert(64, num_experts=128, top_k=8)
        4.0
    """
    check_whole("top_k", top_k, 1, check_size("num_experts", num_experts, 1))
    return check_size("tokens", tokens, 0) * top_k / num_experts


def popularity(num_experts: int, top_k: int, max_over_mean: float | int = 1.0) -> list[float]:
    """The chance of each expert to be among a token's top_k, most popular first; the chances add up to top_k.

    All are top_k / num_experts where ``max_over_mean`` is 1. Otherwise they fall by Zipf's law, as 1 / rank^a, with
    the exponent a (found by bisection) for which the first is ``max_over_mean`` times their mean.

    Example:
        >>> chances = popularity(4, 1, max_over_mean=2)
        >>> [round(chance, 3) for chance in chances], round(sum(chances), 9)
        ([0.5, 0.236, 0.152, 0.112], 1.0)

    Raises ValueError for a ``max_over_mean`` outside 1..num_experts / top_k: no token visits an expert twice.
    """
    check_whole("top_k", top_k, 1, check_size("num_experts", num_experts, 1))
    if not 1 <= check_number("max_over_mean", max_over_mean) <= num_experts / top_k:
        raise ValueError(f"max_over_mean must lie in 1..{num_experts / top_k:g} (experts / top_k), got {max_over_mean}")
    if max_over_mean == 1:
        return [top_k / num_experts] * num_experts
    ranks, low, high = range(1, num_experts + 1), 0.0, 64.0
    for _ in range(60):
        exponent = (low + high) / 2
        reached = num_experts / math.fsum(rank**-exponent for rank in ranks)
        low, high = (exponent, high) if reached < max_over_mean else (low, exponent)
    weights = [rank**-high for rank in ranks]
    total = math.fsum(weights)
    return [min(1.0, top_k * weight / total) for weight in weights]


def experts_hit(tokens: int, num_experts: int, top_k: int, max_over_mean: float | int = 1.0) -> float:
    """How many experts a batch is expected to wake, where every token chooses for itself.

    sum over experts of 1 - (1 - p)^tokens, with p from `popularity`; under uniform routing
    num_experts * (1 - (1 - top_k / num_experts)^tokens).

    Example:
        >>> round(experts_hit(1, 128, 8), 9), round(experts_hit(16, 128, 8), 1)
        (8.0, 82.4)
    """
    check_size("tokens", tokens, 0)
    return _hit(popularity(num_experts, top_k, max_over_mean), tokens)


def _woken(chance: float, tokens: int) -> float:
    """1 - (1 - chance)^tokens, exact for the smallest chances too."""
    return float(tokens > 0) if chance == 1 else -math.expm1(tokens * math.log1p(-chance))


def _hit(chances: list[float], tokens: int) -> float:
    return math.fsum(_woken(chance, tokens) for chance in chances)


def expert_cost(
    shape: LayerShape,
    tokens: int,
    *,
    direction: str = "forward",
    dtype: str = "bfloat16",
    max_over_mean: float | int = 1.0,
    load: Shaped[Tensor, " num_experts"] | None = None,
) -> Cost:
    """FLOPs of a layer's experts, and the bytes that even a perfect kernel must move.

    With d = d_model, f = d_expert, b bytes a number, rows = tokens * top_k, and hit = `experts_hit`:

    - forward: 6 * rows * d * f FLOPs; weights 3 * d * f * b of each expert that is hit; x in and y out, 2 * tokens *
      d * b. What lies between the projections stays on the chip.
    - training, forward and backward: three times the FLOPs; the weights are read twice; the gradient of *every*
      expert's weights is written, zeros included; x, y, then dy, x, dx; and what gate and up projection gave is saved
      and read again, 2 * rows * 2 * f * b.

    The router and the combination of the answers are left out: under 1 % of the FLOPs in `SHAPES`. A ``load``
    (num_experts,), assignments of each expert, replaces the expectation: its sum is rows, its nonzero entries are hit.

    Example:
        >>> cost = expert_cost(SHAPES["Qwen3-30B-A3B"], 64)
        >>> f"{cost.flops / 1e9:.2f} GFLOP, {cost.bytes / 1e6:.0f} MB, {cost.intensity:.2f} FLOP/byte"
        '4.83 GFLOP, 1189 MB, 4.06 FLOP/byte'

    Raises ValueError for tokens below 1, an unknown direction or dtype, a load of no rows, of another number of
    experts, or of more than one row a token; TypeError for a load that is not whole numbers.
    """
    check_size("tokens", tokens, 1)
    _check_pass(direction, dtype)
    if load is None:
        hit = experts_hit(tokens, shape.num_experts, shape.top_k, max_over_mean)
        return _cost(shape, tokens, tokens * shape.top_k, hit, direction, dtype)
    rows = _check_rows(load, shape, tokens)
    return _cost(shape, tokens, rows, int((load > 0).sum()), direction, dtype)


def each_expert(
    shape: LayerShape,
    tokens: int,
    *,
    direction: str = "forward",
    dtype: str = "bfloat16",
    max_over_mean: float | int = 1.0,
) -> list[tuple[float, Cost]]:
    """Every expert alone: its rows in a batch that wakes it, and what these rows cost; the most popular first.

    Rows = tokens * p / (1 - (1 - p)^tokens), at least 1. Each cost counts the expert's own copies of x and y, of
    which the layer as a whole needs to read and write one a token.

    Example:
        >>> alone = each_expert(SHAPES["Mixtral 8x7B"], 64, max_over_mean=2.5)
        >>> [round(rows) for rows, _ in alone]
        [40, 23, 16, 13, 11, 9, 8, 7]
    """
    check_size("tokens", tokens, 1)
    _check_pass(direction, dtype)
    alone = LayerShape(shape.d_model, shape.d_expert, 1, 1)
    chances = popularity(shape.num_experts, shape.top_k, max_over_mean)
    rows = [tokens * chance / _woken(chance, tokens) for chance in chances]
    return [(one, _cost(alone, one, one, 1, direction, dtype)) for one in rows]


def _cost(
    shape: LayerShape, tokens: float | int, rows: float | int, hit: float | int, direction: str, dtype: str
) -> Cost:
    size, weights, training = BYTES[dtype], shape.expert_weights, direction == "training"
    return Cost(
        flops=(3.0 if training else 1.0) * 2 * weights * rows,
        weight_bytes=(2.0 if training else 1.0) * size * weights * hit,
        gradient_bytes=float(size * weights * shape.num_experts) if training else 0.0,
        token_bytes=(5.0 if training else 2.0) * size * shape.d_model * tokens,
        saved_bytes=4.0 * size * shape.d_expert * rows if training else 0.0,
    )


@dataclass(frozen=True)
class Bound:
    """What a roofline allows: FLOP/s at most, milliseconds at least, and which ceiling says so."""

    flops_per_s: float
    time_ms: float
    limit: str


def attainable(cost: Cost, device: Device, dtype: str = "bfloat16") -> Bound:
    """The best that a device can do with this cost, if it moves bytes and computes at the same time.

    FLOP/s = min(peak, intensity * bytes_per_s); time = max(flops / peak, bytes / bytes_per_s); ``limit`` is "compute"
    from the ridge on, else "memory".

    Example:
        >>> from moe_lab.roofline import DEVICES
        >>> bound = attainable(expert_cost(SHAPES["Qwen3-30B-A3B"], 64), DEVICES["H200"])
        >>> f"{bound.flops_per_s / 1e12:.1f} TFLOP/s, {bound.time_ms:.3f} ms, {bound.limit}"
        '19.5 TFLOP/s, 0.248 ms, memory'

    Raises ValueError for a dtype that the device has no ceiling for.
    Source: Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52(4), 2009.
    """
    peak, limit = device.peak(dtype), "compute" if cost.intensity >= device.ridge(dtype) else "memory"
    time_ms = 1e3 * max(cost.flops / peak, cost.bytes / device.bytes_per_s)
    return Bound(min(float(peak), cost.intensity * device.bytes_per_s), time_ms, limit)


def compute_bound_from(
    shape: LayerShape,
    device: Device,
    *,
    direction: str = "forward",
    dtype: str = "bfloat16",
    max_over_mean: float | int = 1.0,
) -> int | None:
    """The smallest batch, in tokens, whose intensity reaches the ridge; None where none does.

    FLOPs grow in proportion to tokens, and bytes more slowly (the experts that are hit saturate), so intensity only
    rises: a bisection over whole numbers is exact. It ends at the first batch that would pay even for all weights.

    Example:
        >>> from moe_lab.roofline import DEVICES
        >>> shape = SHAPES["Qwen3-30B-A3B"]
        >>> compute_bound_from(shape, DEVICES["H200"]), compute_bound_from(shape.dense, DEVICES["H200"])
        (3374, 211)
    """
    _check_pass(direction, dtype)
    ridge, chances = device.ridge(dtype), popularity(shape.num_experts, shape.top_k, max_over_mean)

    def cost(tokens: int, hit: float | int) -> Cost:
        return _cost(shape, tokens, tokens * shape.top_k, hit, direction, dtype)

    token, start = cost(1, 0), cost(0, shape.num_experts)
    paid = token.flops / ridge - token.token_bytes - token.saved_bytes  # bytes that one more token's FLOPs pay for
    if paid <= 0:
        return None
    low, high = 1, math.ceil((start.weight_bytes + start.gradient_bytes) / paid)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle, _hit(chances, middle)).intensity >= ridge else (middle + 1, high)
    return low


def _check_pass(direction: str, dtype: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}; got {direction!r}")
    check_dtype(dtype)


def _check_rows(load: Tensor, shape: LayerShape, tokens: int) -> int:
    rows = int(check_load(load).sum())
    if len(load) != shape.num_experts:
        raise ValueError(f"load must be ({shape.num_experts},), one number an expert, got ({len(load)},)")
    if not 1 <= rows <= tokens * shape.top_k or int(load.max()) > tokens:
        most = f"{tokens * shape.top_k} rows, {tokens} an expert"
        raise ValueError(f"load must have at least 1 and at most {most}, got {rows} and {int(load.max())}")
    return rows
