"""How evenly a routing spreads its work, against the noise that chance alone leaves."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from moe_lab.checks import check_whole
from moe_lab.types import Routing

WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MOST_ASSIGNMENTS = 2**62  # so that sums stay in int64


@dataclass(frozen=True)
class Balance:
    """Measures of one load vector; see `measure_balance` for the formulas."""

    variance: float
    cv: float
    max_violation: float
    entropy: float
    gini: float
    max_over_mean: float
    dead: int
    dropped_fraction: float
    unserved_fraction: float
    noise_floor_cv: float


def measure_balance(
    routing_or_load: Routing | Shaped[Tensor, " num_experts"], *, top_k: int | None = None, tokens: int | None = None
) -> Balance:
    """Measure how evenly assignments are spread over experts.

    With load l, mean m, share f = l / sum(l) and E experts:

    - ``variance`` = mean((l - m)^2), the population's; depends on the batch size, so quote ``cv``;
    - ``cv`` = sqrt(variance) / m; ``max_over_mean`` = max(l) / m; ``max_violation`` = max(l) / m - 1;
    - ``entropy`` = -sum(f log f) / log(E), 1 when even (and for one expert); insensitive near 1;
    - ``gini`` = sum((2 i - E - 1) l_(i)) / (E sum(l)), 0 when even, loads in ascending order;
    - ``dead`` = experts with no assignment;
    - ``dropped_fraction`` = share of the assignments asked for (tokens * top_k) that no expert took;
    - ``unserved_fraction`` = share of tokens that no expert took at all;
    - ``noise_floor_cv`` = sqrt((E / top_k - 1) / tokens): the cv that a perfectly fair router still shows when
      each token draws top_k distinct experts by chance. A cv below it is balance by construction, not luck.

    Given a bare load, ``top_k`` (1 if left out) and ``tokens`` (sum(load) / top_k) say what was asked; a routing knows
    both itself. With no assignment at all every ratio is 0 and every expert dead.

    Example:
        >>> balance = measure_balance(torch.tensor([6, 2, 0, 4]))
        >>> balance.max_over_mean, balance.dead, round(balance.cv, 3), round(balance.noise_floor_cv, 3)
        (2.0, 1, 0.745, 0.5)

    Raises TypeError for anything but a `Routing` or a tensor of whole numbers (8 to 64 bits); ValueError for negative
    loads, or a sum of 2^62 and more.
    Source: cv: Shazeer et al. 2017 (arXiv:1701.06538), section 4; max violation: Wang et al. 2024
    (arXiv:2408.15664), section 4.1.
    """
    if isinstance(routing_or_load, Routing):
        if top_k is not None or tokens is not None:
            raise ValueError(f"top_k and tokens go with a bare load, a Routing has its own; got {top_k} and {tokens}")
        routing = routing_or_load
        load, tokens, asked = routing.load, routing.tokens, routing.asked
        unserved = int((routing.experts < 0).all(dim=1).sum()) / tokens if tokens else 0.0
        top_k = routing.slots if routing.top_k is None else routing.top_k
    else:
        load = check_load(routing_or_load)
        top_k = 1 if top_k is None else check_whole("top_k", top_k, 1, len(load))
        fewest = -(-int(load.sum()) // top_k)
        tokens = fewest if tokens is None else check_whole("tokens", tokens, fewest)
        asked, unserved = tokens * top_k, 0.0
    return _measure(load.double().cpu(), tokens, top_k, asked, unserved)


def check_load(load: Tensor) -> Tensor:
    """A vector of whole numbers, none negative, as int64: what is done with them would overflow a narrower kind."""
    if not isinstance(load, Tensor) or load.dtype not in WHOLE_NUMBERS:
        kind = load.dtype if isinstance(load, Tensor) else type(load).__name__
        raise TypeError(f"load must be a tensor of whole numbers, got {kind}")
    if load.dim() != 1 or load.numel() == 0:
        raise ValueError(f"load must be (num_experts,) with at least one expert, got {tuple(load.shape)}")
    if bool((load < 0).any()):
        raise ValueError(f"load must not be negative, got {load.tolist()}")
    load = load.long()
    if load.double().sum() >= MOST_ASSIGNMENTS:
        raise ValueError(f"load must add up to less than 2^62, got {load.tolist()}")
    return load


def _measure(load: Tensor, tokens: int, top_k: int, asked: int, unserved: float) -> Balance:
    experts, total = len(load), float(load.sum())
    mean = total / experts
    variance = float(((load - mean) ** 2).mean())
    relative = load / mean if total else torch.zeros_like(load)
    share = relative / experts
    rank = torch.arange(1, experts + 1, dtype=torch.float64)
    even = math.log(experts) if experts > 1 else 1.0
    entropy = 0.0 - float(torch.special.xlogy(share, share).sum()) / even  # 0.0 -: never -0.0
    return Balance(
        variance=variance,
        cv=math.sqrt(variance) / mean if total else 0.0,
        max_violation=float(relative.max()) - 1 if total else 0.0,
        entropy=(1.0 if experts == 1 else entropy) if total else 0.0,
        gini=float(((2 * rank - experts - 1) * share.sort().values).sum()) / experts,
        max_over_mean=float(relative.max()),
        dead=int((load == 0).sum()),
        dropped_fraction=max(0.0, 1.0 - total / asked) if asked else 0.0,
        unserved_fraction=unserved,
        noise_floor_cv=math.sqrt(max(0.0, experts / top_k - 1) / tokens) if tokens and top_k else 0.0,
    )


def tile_padding(load: Shaped[Tensor, " num_experts"], tile: int = 128) -> float:
    """Rows that a grouped matrix product computes for nothing, as a share of the rows that it was asked for.

    A GPU kernel works in tiles of ``tile`` rows, so an expert with l rows costs ceil(l / tile) tiles:
    padding = sum(ceil(l / tile) * tile) / sum(l) - 1. It is 0 where every load is a multiple of the tile.

    Example:
        >>> round(tile_padding(torch.tensor([128, 100, 156]), tile=128), 4)
        0.3333

    Raises TypeError for a load that is not whole numbers; ValueError for negative ones or a tile below 1.
    """
    check_whole("tile", tile, 1)
    loads = check_load(load).tolist()
    rows = sum(loads)
    return sum(-(-load // tile) * tile for load in loads) / rows - 1 if rows else 0.0


def device_load(load: Shaped[Tensor, " num_experts"], num_devices: int) -> Shaped[Tensor, " num_devices"]:
    """Assignments per device, where each device holds num_experts / num_devices experts in a row.

    With expert parallelism every device waits for the fullest one: the step takes 1 + ``max_violation`` of this load
    times what an even one would.

    Example:
        >>> device_load(torch.tensor([5, 1, 2, 4]), 2)
        tensor([6, 6])

    Raises ValueError for a number of devices that does not divide num_experts.
    """
    load = check_load(load)
    if len(load) % check_whole("num_devices", num_devices, 1):
        raise ValueError(f"num_devices must divide num_experts={len(load)}, got {num_devices}")
    return load.view(num_devices, -1).sum(dim=1)
