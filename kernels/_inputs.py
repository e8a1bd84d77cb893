"""Random inputs that the kernel files share."""

import torch

from .sort_tokens import RowTable, sort_tokens_reference


def make_routing(tokens, num_experts, top_k, *, seed=0):
    """Random distinct experts for each token: expert 1 always empty, a tenth of the slots too; weights in 0.1 .. 1.1.

    With ``top_k`` = ``num_experts`` nothing can stay empty but single slots.
    """
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(tokens, num_experts, generator=draw)
    if num_experts > max(top_k, 1):
        noise[:, 1] = -1.0
    experts = noise.topk(top_k, dim=1).indices
    empty = torch.rand(tokens, top_k, generator=draw) < 0.1
    weights = (torch.rand(tokens, top_k, generator=draw) + 0.1).masked_fill(empty, 0.0)
    return experts.masked_fill(empty, -1), weights


def make_table(tokens, num_experts, top_k, block_m, *, device, seed=0):
    """The `RowTable` of such a routing, made by the reference, and its weights (tokens, slots) in float32."""
    experts, weights = make_routing(tokens, num_experts, top_k, seed=seed)
    table = sort_tokens_reference(experts, num_experts, block_m)
    return RowTable(*(part.to(device) for part in table)), weights.to(device)
