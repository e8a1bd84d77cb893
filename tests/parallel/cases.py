"""Layers and tokens that every test of expert parallelism uses: the same in the parent and on each rank."""

import torch

from moe_lab import MoE

D_MODEL, NUM_EXPERTS = 12, 8

# options of the layer, tokens of each of four ranks (fewer ranks take the sums), and where the router is pushed to
CASES = {
    "even": ({"top_k": 2}, (6, 6, 6, 6), None),
    "uneven_tokens": ({"top_k": 3, "renormalise": True}, (1, 9, 0, 5), None),
    "no_tokens_at_all": ({"top_k": 2}, (0, 0, 0, 0), None),
    "all_on_one_expert": ({"top_k": 1}, (4, 5, 6, 7), [5]),
    "ranks_without_rows": ({"top_k": 2}, (8, 3, 4, 2), [0, 1]),
    "all_experts": ({"top_k": 8}, (3, 4, 5, 6), None),
    "dropped": ({"top_k": 1, "method": "switch", "capacity_factor": 0.5}, (0, 0, 0, 24), [2]),
    "shared": ({"top_k": 2, "num_shared": 1}, (5, 4, 3, 2), None),
    "mixed_shared": ({"top_k": 1, "num_shared": 2, "mix_shared": True}, (5, 0, 3, 2), None),
    "ungated": ({"top_k": 2, "activation": "gelu"}, (5, 4, 3, 2), None),
    "sigmoid": ({"top_k": 2, "score": "sigmoid", "scale": 2.5}, (5, 4, 3, 2), [7, 0, 3]),
}


def make_case(name):
    """The layer, all tokens, and the upstream gradient, the same in every process."""
    options, tokens, pushed = CASES[name]
    torch.manual_seed(7)
    layer = MoE(D_MODEL, 10, NUM_EXPERTS, backend="grouped", **options)
    x, upstream = torch.randn(2, sum(tokens), D_MODEL).unbind(0)
    if pushed is not None:
        with torch.no_grad():
            layer.router[pushed] += 3 * torch.ones(D_MODEL)
            x = x.abs()
    return layer, x.requires_grad_(), upstream


def share_of(rank, ranks, tokens):
    """The slice of a batch that a rank holds."""
    counts = [sum(tokens[r * 4 // ranks : (r + 1) * 4 // ranks]) for r in range(ranks)]
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))
