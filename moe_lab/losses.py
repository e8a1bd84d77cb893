"""Balancing losses of the literature: what is added to a model's loss so that its router spreads the load.

Each returns one number, in float32 or, for float64, in float64; 0 without tokens. All are unscaled:
`PUBLISHED_COEFFICIENTS` has the factor that a source puts before its loss.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.balance import check_load
from moe_lab.checks import check_number, check_whole
from moe_lab.routers.registry import check_logits
from moe_lab.routers.scores import select, widen
from moe_lab.types import Routing

PUBLISHED_COEFFICIENTS: dict[str, float] = {
    "switch_aux": 1e-2,  # Switch (arXiv:2101.03961), section 2.2
    "gshard": 1e-2,  # Mesh-TensorFlow's default (loss_coef of MoE1D), which has the factor num_experts^2 as here
    "z_loss": 1e-3,  # ST-MoE (arXiv:2202.08906), section 3.3
    "sequence_aux": 1e-4,  # DeepSeek-V3 (arXiv:2412.19437), section 4.2
    "importance": 0.1,  # Shazeer et al. (arXiv:1701.06538), appendix C.1; 0.01 for translation, appendix E
    "smooth_load": 0.1,  # the same two appendices
}
"""Name of a loss -> the coefficient that its source multiplies it with."""


def switch_aux(
    logits: Float[Tensor, "tokens num_experts"],
    routing: Routing,
    *,
    score: str = "softmax",
    load: Int64[Tensor, " num_experts"] | None = None,
) -> Float[Tensor, ""]:
    """Switch's auxiliary loss: num_experts * sum_j f_j P_j, with share f of the assignments and mean score P.

    f_j = count_j / (tokens * top_k), counted before anything was dropped (`asked_load`) and without gradient; P_j =
    mean over tokens of the softmax, or with ``score="sigmoid"`` of the sigmoids divided by their sum. The loss is 1
    where f or P is uniform, whatever top_k; also 1, or less, where P makes up for an uneven f: it trains balance and
    does not measure it. Switch has top_k = 1. Transformers sums f over the slots and gets top_k times as much.

    ``load`` replaces the count by that of a larger batch, f = load / sum(load): with
    ``load=ranks.sum_over_ranks(asked_load(logits, routing))``, ranks of equally many tokens have the loss of the global
    batch as their mean, and its gradient.

    Example:
        >>> from moe_lab import route
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
        >>> switch_aux(logits, route(logits, 1))
        tensor(1.2083)

    Raises TypeError for what is no `Routing`, for logits that are not floating point or a load that is not whole
    numbers; ValueError for logits and routing of different sizes, another score, or a load that is not (num_experts,),
    is negative, or is zero although there are tokens.
    Source: Fedus, Zoph and Shazeer 2021 (arXiv:2101.03961), section 2.2, equations 4 to 6; sigmoid: DeepSeek-V3
    (arXiv:2412.19437), equation 19; global batch: Qiu et al. 2025 (arXiv:2501.11873), abstract; used by Qwen3.
    """
    asked = _asked(logits, routing)
    scores = _shares(logits, score)
    if load is None:
        return _share_times_score(scores, asked, 1)
    _check_load(load, logits)
    share = load.to(scores.dtype) / load.sum().clamp_min(1)
    return scores.shape[1] * (share * _mean(scores)).sum()


def gshard(logits: Float[Tensor, "tokens num_experts"], routing: Routing) -> Float[Tensor, ""]:
    """GShard's auxiliary loss: num_experts^2 * mean_j(f_j P_j), where f counts first choices only.

    f_j = share of tokens whose first choice is expert j, whether it found a place or not; P_j = mean softmax. Equal to
    `switch_aux` for top_k = 1. The paper leaves out num_experts^2, so that its loss is smaller the more experts there
    are; with it, as in Mesh-TensorFlow, uniform is 1. The paper's groups of tokens are one call each.

    Example:
        >>> from moe_lab import route
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
        >>> gshard(logits, route(logits, 2))
        tensor(1.9957)

    Raises: see `switch_aux`; ValueError for a routing in which experts chose their tokens.
    Source: Lepikhin et al. 2020 (arXiv:2006.16668), section 2.2, algorithm 1, line 13.
    """
    asked = _asked(logits, routing)
    if routing.top_k is not None:
        raise ValueError(f"routing must come from tokens that choose, got one with a top_k of its own: {routing.top_k}")
    first = Routing.trusted(asked.experts[:, :1], asked.weights[:, :1], asked.num_experts)
    return _share_times_score(_shares(logits, "softmax"), first, 1)


def sequence_aux(
    logits: Float[Tensor, "tokens num_experts"], routing: Routing, sequences: int, *, score: str = "sigmoid"
) -> Float[Tensor, ""]:
    """DeepSeek-V3's sequence-wise loss: `switch_aux` of each sequence on its own, mean over the sequences.

    The tokens are ``sequences`` sequences of equal length L, one after the other. Of each: sum_j f_j P_j with
    f_j = num_experts / (top_k * L) * count_j and P_j the mean of the normalised score. 1 at uniform. Equation 18 counts
    the top_k of the scores before a bias is added: where the layer routes with one, give ``route(logits, top_k)``
    as the routing; the layer's own routing makes it a loss on what was really sent.

    Example:
        >>> from moe_lab import route
        >>> logits = torch.tensor([[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0], [-9.0, 9.0]])
        >>> one = sequence_aux(logits, route(logits, 1), sequences=1)  # even over the batch,
        >>> two = sequence_aux(logits, route(logits, 1), sequences=2)  # collapsed in each half
        >>> round(one.item(), 2), round(two.item(), 2)
        (1.0, 2.0)

    Raises: see `switch_aux`; ValueError for ``sequences`` that do not divide the tokens.
    Source: DeepSeek-V3 (arXiv:2412.19437), section 2.1.2, equations 17 to 20.
    """
    asked = _asked(logits, routing)
    sequences = check_whole("sequences", sequences, 1)
    if asked.tokens % sequences:
        raise ValueError(f"sequences must divide the tokens, got sequences={sequences} and {asked.tokens} tokens")
    return _share_times_score(_shares(logits, score), asked, sequences)


def z_loss(logits: Float[Tensor, "tokens num_experts"]) -> Float[Tensor, ""]:
    """ST-MoE's router z-loss: mean over tokens of logsumexp_j(logits)^2.

    Keeps logits small, where rounding does little harm, and says nothing about balance. Logits of 0 give
    log(num_experts)^2, not 0; logits beyond 1.8e19, whose square float32 cannot hold, give infinity.

    Example:
        >>> z_loss(torch.zeros(3, 8))
        tensor(4.3241)

    Raises TypeError for logits that are not floating point; ValueError for a shape other than (tokens, num_experts).
    Source: Zoph et al. 2022 (arXiv:2202.08906), section 3.3, equation 5.
    """
    check_logits(logits)
    return _mean(widen(logits).logsumexp(dim=1).square())


def importance(routing: Routing) -> Float[Tensor, ""]:
    """Shazeer's importance loss: CV(importance)^2, with importance_j = sum over tokens of expert j's weight.

    CV^2 = variance / mean^2, the population's: 0 when even, or when all weights underflow to 0. The gradient goes
    through ``routing.weights``. Equal importance can be few tokens of great weight against many of little, so the paper
    adds `smooth_load`.

    Example:
        >>> routing = Routing(torch.tensor([[0], [0], [1]]), torch.tensor([[0.5], [0.25], [0.25]]), 2)
        >>> importance(routing)  # 0.75 and 0.25
        tensor(0.2500)

    Raises TypeError for what is no `Routing`.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 4, equations 6 and 7.
    """
    _check_routing(routing)
    weights = widen(routing.weights).reshape(-1)
    # one after the other: in float32, a million weights of 0.1 add up to 1 % too much
    exact = weights.new_zeros(routing.num_experts + 1, dtype=torch.float64)
    sums = exact.index_add(0, routing.experts.reshape(-1) + 1, weights.double())
    return _cv_squared(sums[1:]).to(weights.dtype)  # the first sum is that of the empty slots


def smooth_load(
    clean_logits: Float[Tensor, "tokens num_experts"],
    noisy_logits: Float[Tensor, "tokens num_experts"],
    noise_std: float | int | Float[Tensor, "tokens num_experts"],
    top_k: int,
) -> Float[Tensor, ""]:
    """Shazeer's load loss: CV(load)^2, with the load that redrawn noise would give on average.

    load_j = sum over tokens x of P(x, j), the probability that expert j is among the top_k when its own noise is drawn
    again and the others' is kept: P = Phi((clean_j - kth_excluding(noisy, top_k, j)) / noise_std_j), where
    kth_excluding is the top_k-th highest of the other experts. Unlike a count it has a gradient. 0 when
    even, and for top_k = num_experts.

    `noisy_top_k` keeps its noise to itself: draw with ``moe_lab.routers.choice.add_noise`` and route the sum
    by `top_k`.

    Example:
        >>> smooth_load(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), 1.0, top_k=1)  # 0.8413 and 0.1587
        tensor(0.4661)

    Raises TypeError for logits that are not floating point; ValueError for logits of different shapes, for a
    ``noise_std`` that is not above 0 everywhere (in float32, where the logits are: not below 1.2e-38), or a top_k
    outside 1..num_experts.
    Source: Shazeer et al. 2017 (arXiv:1701.06538), appendix A, equations 8 to 11.
    """
    check_logits(clean_logits)
    check_logits(noisy_logits)
    if clean_logits.shape != noisy_logits.shape:
        raise ValueError(
            "clean_logits and noisy_logits must have one shape, "
            f"got {tuple(clean_logits.shape)} and {tuple(noisy_logits.shape)}"
        )
    top_k = check_whole("top_k", top_k, 1, clean_logits.shape[1])
    _check_noise_std(noise_std, clean_logits)
    clean, noisy = widen(clean_logits), widen(noisy_logits)
    if top_k == clean.shape[1]:
        return _cv_squared((1 + 0 * clean).sum(dim=0))  # fewer than top_k others to beat: every P is 1
    last, next_best = noisy.topk(top_k + 1, dim=1).values[:, top_k - 1 :].split(1, dim=1)
    # without an expert that is among the top_k, the next best moves up to be the top_k-th
    kth_excluding = torch.where(noisy > next_best, next_best, last)
    probability = torch.special.ndtr((clean - kth_excluding) / noise_std)
    return _cv_squared(probability.sum(dim=0))


def asked_load(logits: Float[Tensor, "tokens num_experts"], routing: Routing) -> Int64[Tensor, " num_experts"]:
    """Count the assignments per expert that the tokens asked for, before any was dropped.

    Where a token has an empty slot, what it asked for is the top_k of its logits; a selection bias is not known here.
    A routing in which experts chose drops nothing, and is counted as it is.

    Example:
        >>> from moe_lab import route
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> routing = route(logits, 1, "switch", capacity_factor=1.0)
        >>> routing.load.tolist(), asked_load(logits, routing).tolist()
        ([2, 0], [3, 0])

    Raises: see `switch_aux`.
    Source: Switch (arXiv:2101.03961), equation 5, counts argmax; GShard (arXiv:2006.16668), algorithm 1, line 11.
    """
    return _asked(logits, routing).load


def _share_times_score(scores: Tensor, asked: Routing, sequences: int) -> Tensor:
    """num_experts * sum_j f_j P_j of each sequence, mean over the sequences."""
    tokens, num_experts = scores.shape
    length = tokens // sequences
    # each sequence's experts as experts of their own, so that one count serves all
    first = num_experts * torch.arange(sequences, device=scores.device).repeat_interleave(length)[:, None]
    own = torch.where(asked.experts < 0, asked.experts, asked.experts + first)
    count = Routing.trusted(own, asked.weights, sequences * num_experts).load.view(sequences, num_experts)
    share = count.to(scores.dtype) / max(asked.asked // sequences, 1)
    mean_score = scores.reshape(sequences, length, num_experts).sum(dim=1) / max(length, 1)
    return num_experts * (share * mean_score).sum(dim=1).mean()


def _asked(logits: Tensor, routing: Routing) -> Routing:
    """The routing before anything was dropped; its weights are still those that were kept."""
    check_logits(logits)
    _check_routing(routing)
    if (routing.tokens, routing.num_experts) != tuple(logits.shape):
        raise ValueError(
            f"logits and routing must agree, got logits of {logits.shape[0]} tokens x {logits.shape[1]} experts and "
            f"a routing of {routing.tokens} tokens x {routing.num_experts} experts"
        )
    if routing.top_k is not None:
        return routing
    if routing.slots > routing.num_experts:
        raise ValueError(f"routing has {routing.slots} slots, more than its {routing.num_experts} experts")
    short = (routing.experts < 0).any(dim=1, keepdim=True)
    if not bool(short.any()):
        return routing
    experts = torch.where(short, select(widen(logits).detach(), routing.slots), routing.experts)
    return Routing.trusted(experts, routing.weights, routing.num_experts)


def _shares(logits: Tensor, score: str) -> Tensor:
    """Scores of a token that sum to 1 over all experts."""
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score must be one of softmax, sigmoid; got {score!r}")
    wide = widen(logits)
    # sigmoids over their sum are the softmax of their logarithms, which is defined where all of them underflow
    return (F.logsigmoid(wide) if score == "sigmoid" else wide).softmax(dim=1)


def _mean(values: Tensor) -> Tensor:
    """Mean over tokens; 0, and no NaN, without any."""
    return values.sum(dim=0) / max(values.shape[0], 1)


def _cv_squared(values: Tensor) -> Tensor:
    """Variance over squared mean; 0 where all values are."""
    mean = values.mean()
    return (values / torch.where(mean == 0, torch.ones_like(mean), mean)).var(correction=0)


def _check_routing(routing: Routing) -> None:
    if not isinstance(routing, Routing):
        raise TypeError(f"routing must be a Routing, got {type(routing).__name__}")


def _check_load(load: Tensor, logits: Tensor) -> None:
    if check_load(load).shape != logits.shape[1:]:
        raise ValueError(f"load must be (num_experts,) = ({logits.shape[1]},), got {tuple(load.shape)}")
    if len(logits) and not bool(load.any()):
        raise ValueError(f"load must count these {len(logits)} tokens among others, got {load.tolist()}")


def _check_noise_std(noise_std: float | Tensor, logits: Tensor) -> None:
    least = torch.finfo(widen(logits).dtype).tiny  # what is less can be 0 to the processor, and 0 / 0 is NaN
    if not isinstance(noise_std, Tensor):
        if check_number("noise_std", noise_std, above=0) < least:
            raise ValueError(f"noise_std must be at least {least:.3g} with logits in {logits.dtype}, got {noise_std}")
        return
    low = noise_std.min().item() if noise_std.numel() else 1.0
    if noise_std.shape != logits.shape or not noise_std.is_floating_point() or not low >= least:
        raise ValueError(
            f"noise_std must be a number or floating point {tuple(logits.shape)} like logits, above 0; "
            f"got {noise_std.dtype} {tuple(noise_std.shape)} with a minimum of {low}, and {least:.3g} is the least"
        )
