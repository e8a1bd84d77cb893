"""Patients with tokens in the wrong place: padding that counts, places that nobody counts, a token that stays."""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_lab.clinic.patient import Function, Law, Patient, compare, draw, favour, gradient, near
from moe_lab.losses import switch_aux
from moe_lab.routers import route

# ---------------------------------------------------------------- padding that counts


def padded_loss(logits, mask, top_k):
    """Balancing loss of a padded batch: logits (batch, length, num_experts), mask (batch, length), True if real."""
    tokens = logits.reshape(-1, logits.shape[-1])
    return switch_aux(tokens, route(tokens, top_k))


def _of_real_tokens(logits, mask, top_k):
    return switch_aux(logits[mask], route(logits[mask], top_k))


def _masked(shares_mask: Function, scores_mask: Function, divisor: Function = lambda real: real.sum()) -> Function:
    """The loss, with the tokens that count for shares and for scores, and what both are divided by, to replace."""

    def loss(logits, mask, top_k):
        tokens, real = logits.reshape(-1, logits.shape[-1]), mask.reshape(-1).float()
        asked = F.one_hot(tokens.topk(top_k).indices, tokens.shape[1]).float().mean(dim=1)
        of_shares, of_scores = shares_mask(real), scores_mask(real)
        share = of_shares @ asked / divisor(of_shares)
        return tokens.shape[1] * (share * (of_scores @ tokens.softmax(dim=1) / divisor(of_scores))).sum()

    return loss


def pad(sentences: list[Tensor], length: int, filling: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
    """Router logits of sentences, and the mask of what is real, padded at the end to a length.

    Example:
        >>> logits, mask = pad([torch.ones(2, 3), torch.ones(1, 3)], 4)
        >>> logits.shape, mask.tolist()
        (torch.Size([2, 4, 3]), [[True, True, False, False], [True, False, False, False]])
    """
    logits = torch.zeros(len(sentences), length, sentences[0].shape[1]) + filling
    mask = torch.zeros(len(sentences), length, dtype=torch.bool)
    for row, sentence in enumerate(sentences):
        logits[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = True
    return logits, mask


def _sentences(*lengths: int, num_experts: int = 4) -> list[Tensor]:
    return [draw(length, num_experts, seed=length, spread=2.0) for length in lengths]


def _pads(sentences: list[Tensor], length: int, top_k: int = 1, filling: float | Tensor = 0.0) -> Law:
    logits, mask = pad(sentences, length, filling)
    spec = _of_real_tokens(logits, mask, top_k)
    return lambda loss: compare(loss(logits, mask, top_k), spec)


def _padding_in_front(loss: Function) -> str | None:
    logits, mask = (one.flip(dims=(1,)) for one in pad(_sentences(5, 2, 7), 9, favour(3, 1, 4)))
    return compare(loss(logits, mask, 2), _of_real_tokens(logits, mask, 2))


def _teaches_no_padding(loss: Function) -> str | None:
    logits, mask = pad(_sentences(5, 2), 6, 0.5)
    found = gradient(loss, logits, mask, 1)
    spec = gradient(_of_real_tokens, logits, mask, 1)
    return compare(found, spec, f"the gradient at padding is {float(found[~mask].norm()):.3g}, spec 0: ")


def padded_to(loss: Function, sentences: list[Tensor], length: int) -> float:
    """The loss of sentences that are padded to a length with tokens that prefer expert 0.

    Example:
        >>> round(padded_to(padded_loss, [favour(1, 8, 4)], 16), 2)
        1.91
    """
    return float(loss(*pad(sentences, length, favour(0, 1, sentences[0].shape[1], 3.0)), 1))


def _tell_padding(loss: Function) -> str:
    sentences = [favour(expert, 8, 4, 3.0) for expert in range(4)]
    said = [f"to {length}: {padded_to(loss, sentences, length):.2f}" for length in (8, 16, 64)]
    return f"4 sentences of 8 tokens, each expert gets a quarter of the tokens. Loss, padded {', '.join(said)}."


PADDING = Patient(
    "The same text, a longer batch, a larger loss",
    ("huggingface/transformers#28505", "huggingface/transformers#28517"),
    _tell_padding,
    padded_loss,
    {
        "only the real tokens": _of_real_tokens,
        "weighted by the mask": _masked(lambda real: real, lambda real: real),
    },
    {
        "only the scores are masked": _masked(torch.ones_like, lambda real: real),
        "only the shares are masked": _masked(lambda real: real, torch.ones_like),
        "divided by all positions": _masked(lambda real: real, lambda real: real, len),
        "padding instead of text": lambda logits, mask, top_k: _of_real_tokens(
            logits, ~mask if not mask.all() else mask, top_k
        ),
        "the mask of another order": lambda logits, mask, top_k: padded_loss(
            logits.reshape(-1, logits.shape[-1])[mask.T.reshape(-1)], None, top_k
        ),
        "padding gets zeros as logits": lambda logits, mask, top_k: padded_loss(logits * mask[..., None], mask, top_k),
        "always 1": lambda logits, mask, top_k: 1.0 + 0.0 * logits.sum(),
    },
    {
        "no padding": _pads(_sentences(6, 6), 6),
        "one sentence, padded": _pads(_sentences(5), 9),
        "sentences of three lengths": _pads(_sentences(6, 3, 1), 8, 2),
        "padding that prefers an expert": _pads(_sentences(7, 4), 32, 1, favour(2, 1, 4)),
        "padding in front": _padding_in_front,
        "padding teaches nothing": _teaches_no_padding,
    },
)

# ---------------------------------------------------------------- places that nobody counts


def keep(experts, num_experts, capacity):
    """Experts (tokens,) -> True for each token that is among the first `capacity` of its expert."""
    one_hot = F.one_hot(experts[:, None], num_experts)
    place = (one_hot.cumsum(dim=-2) * one_hot).amax(dim=(-2, -1))
    return place <= capacity


def _keep(places: Function) -> Function:
    """Whether a token is kept, by its place from 1 on."""
    return lambda experts, num_experts, capacity: places(F.one_hot(experts, num_experts), experts) <= capacity


def _arrivals(one_hot: Tensor, experts: Tensor) -> Tensor:
    return one_hot.cumsum(dim=0)[torch.arange(len(experts)), experts]


def _keep_one_by_one(experts, num_experts, capacity):
    seen, kept = [0] * num_experts, []
    for expert in experts.tolist():
        seen[expert] += 1
        kept.append(seen[expert] <= capacity)
    return torch.tensor(kept, dtype=torch.bool)


def _keeps(experts: list[int], capacity: int, num_experts: int = 4) -> Law:
    def law(kept: Function) -> str | None:
        table = torch.tensor(experts, dtype=torch.int64)
        yours = torch.as_tensor(kept(table, num_experts, capacity))
        return compare(yours.bool(), _keep_one_by_one(table, num_experts, capacity))

    return law


def drawn_experts(tokens: int, num_experts: int, seed: int = 0) -> Tensor:
    """An expert a token, lower numbers more often."""
    draws = torch.Generator().manual_seed(seed)
    return torch.multinomial(1 / torch.arange(1.0, num_experts + 1), tokens, replacement=True, generator=draws)


def _fills_each(kept: Function) -> str | None:
    for seed, capacity in enumerate((1, 3, 8, 40)):
        experts = drawn_experts(50, 6, seed)
        found = torch.bincount(experts[torch.as_tensor(kept(experts, 6, capacity)).bool()], minlength=6)
        spec = torch.bincount(experts, minlength=6).clamp(max=capacity)
        if (fault := compare(found, spec, f"capacity {capacity}: ")) is not None:
            return fault
    return None


def _tell_places(kept: Function) -> str:
    experts = drawn_experts(64, 8)
    load = torch.bincount(experts[kept(experts, 8, 8)], minlength=8)
    return f"64 tokens, 8 experts of capacity 8. After dropping, experts have {load.tolist()} tokens."


PLACES = Patient(
    "A capacity that drops nobody",
    ("huggingface/transformers#48293", "huggingface/transformers#48421"),
    _tell_places,
    keep,
    {"arrivals so far": _keep(_arrivals), "one by one": _keep_one_by_one},
    {
        "one place too many": _keep(lambda one_hot, experts: _arrivals(one_hot, experts) - 1),
        "one place too few": _keep(lambda one_hot, experts: _arrivals(one_hot, experts) + 1),
        "the last come first": _keep(lambda one_hot, experts: _arrivals(one_hot.flip(0), experts.flip(0)).flip(0)),
        "a place in the batch": _keep(lambda one_hot, experts: torch.arange(1, len(experts) + 1)),
        "nobody is kept": _keep(lambda one_hot, experts: torch.full_like(experts, 10**9)),
        "everybody or nobody": _keep(lambda one_hot, experts: one_hot.sum(dim=0)[experts]),
    },
    {
        "room for all": _keeps([0, 1, 2, 3, 0], 2),
        "all want one expert": _keeps([2] * 7, 3),
        "two experts in turn": _keeps([0, 1, 0, 1, 0, 1, 0], 2),
        "no places": _keeps([1, 3], 0),
        "one place": _keeps([3, 3, 0, 3, 0], 1),
        "each gets what it may": _fills_each,
        "drawn by chance": _keeps(drawn_experts(40, 4, seed=9).tolist(), 6),
    },
)

# ---------------------------------------------------------------- a dropped token that stays


def collect(tokens, kept, weights, answers):
    """A Switch layer's output: weight * answer where a token was kept. Rows of dropped tokens hold no answer."""
    output = tokens.clone()
    output[kept] = answers[kept]
    return weights[:, None] * output


def _from_zeros(tokens, kept, weights, answers):
    output = torch.zeros_like(tokens)
    output[kept] = weights[kept, None] * answers[kept]
    return output


def _collects(tokens: int, kept: list[int], seed: int = 0, dropped: float = 0.0, own: float = 1.0) -> Law:
    def law(gather: Function) -> str | None:
        x, answers, weights = own * draw(tokens, 3, seed=seed), draw(tokens, 3, seed=seed + 1), draw(tokens).sigmoid()
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[kept] = True
        answers[~mask] = dropped
        spec = _from_zeros(x, mask, weights, answers)
        found = gather(x, mask, weights, answers)
        for row in range(tokens):
            if not near(found[row], spec[row]):
                which = "kept" if mask[row] else "dropped"
                return f"{which} token {row}: yours {say_row(found[row])}, spec {say_row(spec[row])}"
        return None

    return law


def say_row(row: Tensor) -> list[float]:
    """A row with three digits after the point."""
    return [round(value, 3) for value in row.tolist()]


def _tell_dropped(gather: Function) -> str:
    x, weights = torch.ones(4, 2), torch.tensor([0.9, 0.8, 0.7, 0.6])
    output = gather(x, torch.tensor([True, False, True, False]), weights, torch.full((4, 2), 10.0))
    return (
        "Four tokens (1, 1), two of them dropped; every answer is (10, 10), the weights 0.9, 0.8, 0.7, 0.6. "
        f"The layer adds {', '.join(str(say_row(row)) for row in output)}."
    )


DROPPED = Patient(
    "A dropped token that the layer shrinks",
    ("huggingface/transformers#37017", "huggingface/transformers#37123"),
    _tell_dropped,
    collect,
    {
        "from zeros": _from_zeros,
        "zeros where dropped": lambda tokens, kept, weights, answers: torch.where(
            kept[:, None], weights[:, None] * answers, 0.0
        ),
    },
    {
        "the token itself": lambda tokens, kept, weights, answers: torch.where(
            kept[:, None], weights[:, None] * answers, tokens
        ),
        "whatever is there": lambda tokens, kept, weights, answers: weights[:, None] * answers,
        "times the mask": lambda tokens, kept, weights, answers: kept[:, None] * weights[:, None] * answers,
        "unweighted": lambda tokens, kept, weights, answers: torch.where(kept[:, None], answers, 0.0),
        "the dropped instead": lambda tokens, kept, weights, answers: _from_zeros(tokens, ~kept, weights, answers),
        "nothing at all": lambda tokens, kept, weights, answers: torch.zeros_like(tokens),
    },
    {
        "nothing dropped": _collects(3, [0, 1, 2]),
        "everything dropped": _collects(3, []),
        "every other one": _collects(6, [0, 2, 4], seed=3),
        "rows of dropped tokens may hold anything": _collects(5, [1, 4], seed=4, dropped=float("nan")),
        "tokens a thousand times as large": _collects(4, [2], seed=5, own=1000.0),
        "one of many": _collects(20, [7], seed=6, dropped=9.0),
    },
)
