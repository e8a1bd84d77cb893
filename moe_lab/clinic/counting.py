"""Patients who count wrongly: layers in one heap, tokens counted twice, counts that are rounded."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_lab.clinic.patient import Function, Law, Patient, compare, draw, favour, gradient, near, spread_evenly
from moe_lab.losses import switch_aux
from moe_lab.routers import route

# ---------------------------------------------------------------- all layers in one heap


def loss_of_layers(layers, top_k):
    """The balancing loss of a model: logits (tokens, num_experts) of each layer -> one number."""
    logits = torch.cat(layers)
    return switch_aux(logits, route(logits, top_k))


def _layer_by_layer(layers, top_k):
    return torch.stack([switch_aux(logits, route(logits, top_k)) for logits in layers]).mean()


def _shares(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Each expert's share of the assignments, and its mean probability."""
    asked = F.one_hot(logits.topk(top_k).indices, logits.shape[1]).float()
    return asked.mean(dim=(0, 1)), logits.softmax(dim=1).mean(dim=0)


def _by_products(layers, top_k):
    total = 0.0
    for logits in layers:
        share, score = _shares(logits, top_k)
        total = total + logits.shape[1] * (share @ score)
    return total / len(layers)


def _heaped_shares_only(layers, top_k):
    share = _shares(torch.cat(layers), top_k)[0]
    return torch.stack([len(share) * (share @ logits.softmax(dim=1).mean(dim=0)) for logits in layers]).mean()


def _like_each_layer(layers: list[Tensor], top_k: int) -> Law:
    spec = sum(_layer_by_layer([logits], top_k) for logits in layers) / len(layers)
    return lambda loss: compare(loss(layers, top_k), spec)


def _in_any_order(loss: Function) -> str | None:
    layers = [draw(24, 6, seed=seed, spread=3.0) + favour(seed, 24, 6, 2.0) for seed in range(3)]
    return compare(loss(layers[::-1], 2), loss(layers, 2), "the other way round: ") or _like_each_layer(layers, 2)(loss)


def _teaches_every_layer(loss: Function) -> str | None:
    layers = [draw(12, 4, seed=seed) for seed in range(3)]
    for number in range(3):
        found = gradient(lambda one, at=number: loss([*layers[:at], one, *layers[at + 1 :]], 1), layers[number])
        spec = gradient(lambda one: _layer_by_layer([one], 1) / 3, layers[number])
        if not near(found, spec, 1e-6):
            return f"layer {number} gets another gradient than its own loss, a third of it, would give"
    return None


def _tell_layers(loss: Function) -> str:
    layers = [favour(layer, 64, 8) for layer in range(8)]
    alone = sum(float(loss([one], 1)) for one in layers) / 8
    return (
        "8 layers of 8 experts, each layer sends all its tokens to one expert, each to another. "
        f"The mean of their losses one by one: {alone:.2f}. Loss of all together: {float(loss(layers, 1)):.2f}."
    )


HEAP = Patient(
    "Eight collapsed layers, and a perfect loss",
    ("huggingface/transformers#31464", "huggingface/transformers#29503", "huggingface/transformers#28255"),
    _tell_layers,
    loss_of_layers,
    {"layer by layer": _layer_by_layer, "by products": _by_products},
    {
        "only the shares in a heap": _heaped_shares_only,
        "the first layer": lambda layers, top_k: _layer_by_layer(layers[:1], top_k),
        "the last layer": lambda layers, top_k: _layer_by_layer(layers[-1:], top_k),
        "the best layer": lambda layers, top_k: min(_layer_by_layer([one], top_k) for one in layers),
        "a sum over layers": lambda layers, top_k: len(layers) * _layer_by_layer(layers, top_k),
        "always 1": lambda layers, top_k: torch.ones(()),
    },
    {
        "one layer": _like_each_layer([draw(20, 5)], 2),
        "the same layer twice": _like_each_layer([draw(20, 5, seed=1)] * 2, 2),
        "two collapsed layers": _like_each_layer([favour(0, 8, 4), favour(3, 8, 4)], 1),
        "collapsed and even": _like_each_layer([favour(0, 8, 4), spread_evenly(8, 4)], 1),
        "any order": _in_any_order,
        "every layer learns": _teaches_every_layer,
    },
)

# ---------------------------------------------------------------- counted again when recomputed


def step_load(batches, top_k, recompute):
    """Train on each batch of logits, with activation checkpointing or without; return each expert's assignments."""
    load = torch.zeros(batches[0].shape[1], dtype=torch.int64)

    def layer(logits):
        routing = route(logits, top_k)
        load.add_(routing.load)
        return routing.weights.square().sum()

    for logits in batches:
        leaf = logits.clone().requires_grad_()
        out = checkpoint(layer, leaf, use_reentrant=False) if recompute else layer(leaf)
        out.backward()
    return load


def _counted_outside(batches, top_k, recompute):
    return sum(route(logits, top_k).load for logits in batches)


def _halved_where_recomputed(batches, top_k, recompute):
    return step_load(batches, top_k, recompute) // (2 if recompute else 1)


def _counts(batches: list[Tensor], top_k: int, recompute: bool) -> Law:
    spec = _counted_outside(batches, top_k, recompute)
    return lambda count: compare(count(batches, top_k, recompute), spec)


def _counts_whole(count: Function) -> str | None:
    for recompute in (False, True):
        found = torch.as_tensor(count([draw(9, 4)], 2, recompute))
        if found.dtype != torch.int64:
            return f"yours {found.dtype}, spec torch.int64"
    return None


def _tell_counts(count: Function) -> str:
    batches = [draw(32, 8, seed=seed) for seed in range(4)]
    plain, again = (int(count(batches, 2, recompute).sum()) for recompute in (False, True))
    return (
        "4 batches of 32 tokens, top-2: 256 assignments. Counted without activation checkpointing "
        f"{plain}, with it {again}. The same tokens go to the same experts."
    )


_BATCHES = [draw(10, 5, seed=seed) for seed in range(3)]
TWICE = Patient(
    "More assignments than tokens",
    ("pytorch/torchtitan#1593", "pytorch/torchtitan#3686"),
    _tell_counts,
    step_load,
    {"counted outside the layer": _counted_outside, "halved where recomputed": _halved_where_recomputed},
    {
        "always halved": lambda batches, top_k, recompute: step_load(batches, top_k, recompute) // 2,
        "nothing where recomputed": lambda batches, top_k, recompute: (
            step_load(batches, top_k, False) * (not recompute)
        ),
        "the last batch": lambda batches, top_k, recompute: step_load(batches[-1:], top_k, False),
        "first choices only": lambda batches, top_k, recompute: step_load(batches, 1, False),
        "as many as there should be, evenly": lambda batches, top_k, recompute: torch.full(
            batches[0].shape[1:], sum(map(len, batches)) * top_k // batches[0].shape[1]
        ),
    },
    {
        "one batch": _counts(_BATCHES[:1], 1, False),
        "one batch, recomputed": _counts(_BATCHES[:1], 1, True),
        "three batches": _counts(_BATCHES, 2, False),
        "three batches, recomputed": _counts(_BATCHES, 2, True),
        "whole numbers": _counts_whole,
    },
)

# ---------------------------------------------------------------- counts in bfloat16


def new_bias(counts, bias, rate):
    """Counts (ranks, num_experts) of one step -> the bias of each expert, moved by rate against its load."""
    total = torch.zeros(counts.shape[1], dtype=torch.bfloat16)
    for of_rank in counts:
        total += of_rank.to(torch.bfloat16)
    load = total.float()
    return bias + rate * (load.mean() - load).sign()


def _move(counts, bias, rate, load):
    """The update by a load that was summed in one way or another."""
    return bias + rate * (load.mean() - load).sign()


def _in_whole_numbers(counts, bias, rate):
    total = counts.sum(dim=0)
    return bias + rate * (total.sum() - total * len(total)).sign()


def _moves(counts: Tensor, bias: Tensor | None = None, rate: float = 0.001) -> Law:
    bias = torch.zeros(counts.shape[1]) if bias is None else bias
    spec = _in_whole_numbers(counts, bias, rate)
    return lambda update: compare(update(counts, bias, rate), spec, tolerance=1e-6)


def drawn_counts(ranks: int, num_experts: int, mean: int, width: int, seed: int = 0) -> Tensor:
    """Whole counts between mean - width and mean + width, the same for the same seed."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(mean - width, mean + width + 1, (ranks, num_experts), generator=draws)


def _however_split(update: Function) -> str | None:
    whole = drawn_counts(1, 6, 41_000, 300)
    parts = (whole // 64).repeat(64, 1)
    parts[0] += whole[0] - parts.sum(dim=0)
    return compare(update(parts, torch.zeros(6), 0.01), _in_whole_numbers(whole, torch.zeros(6), 0.01), "64 ranks: ")


def _tell_bias(update: Function) -> str:
    counts = drawn_counts(64, 32, 640, 34)
    wrong = (update(counts, torch.zeros(32), 1.0) != _in_whole_numbers(counts, torch.zeros(32), 1.0)).sum()
    return (
        f"64 ranks count about 640 tokens an expert, {int(counts.sum(dim=0).min()):,} to "
        f"{int(counts.sum(dim=0).max()):,} together. Of 32 biases {int(wrong)} move the wrong way, or stay."
    )


def _scaled(dtype: torch.dtype) -> Function:
    return lambda counts, bias, rate: _move(counts, bias, rate, counts.sum(dim=0).to(dtype).float())


ROUNDED = Patient(
    "Busy experts become more popular",
    ("NVIDIA/Megatron-LM#7081",),
    _tell_bias,
    new_bias,
    {
        "in whole numbers": _in_whole_numbers,
        "in float64": lambda counts, bias, rate: _move(counts, bias, rate, counts.double().sum(dim=0)).to(bias.dtype),
        "in float32, exact up to 2^24": lambda counts, bias, rate: _move(counts, bias, rate, counts.sum(dim=0).float()),
    },
    {
        "rounded once, at the end": _scaled(torch.bfloat16),
        "in float16, up to 65,504": lambda counts, bias, rate: _move(
            counts, bias, rate, counts.half().sum(dim=0, dtype=torch.float16).float()
        ),
        "ranks vote": lambda counts, bias, rate: (
            bias + rate * (counts.float().mean(dim=1, keepdim=True) - counts).sign().sum(dim=0).sign()
        ),
        "towards the busy": lambda counts, bias, rate: 2 * bias - _in_whole_numbers(counts, bias, rate),
        "the old bias is lost": lambda counts, bias, rate: _in_whole_numbers(counts, 0 * bias, rate),
        "it never moves": lambda counts, bias, rate: bias,
    },
    {
        "one rank, small counts": _moves(torch.tensor([[3, 1, 2]])),
        "even loads move nothing": _moves(torch.full((4, 3), 500)),
        "64 ranks": _moves(drawn_counts(64, 16, 640, 34)),
        "totals above 65,504": _moves(drawn_counts(200, 8, 700, 30)),
        "ranks that disagree": _moves(torch.tensor([[1, 2, 0], [1, 2, 0], [9, 0, 0]])),
        "the old bias stays": _moves(torch.tensor([[5, 1]]), torch.tensor([0.25, -0.5]), 0.125),
        "however counts are split": _however_split,
    },
)
