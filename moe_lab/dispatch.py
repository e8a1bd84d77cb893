"""How tokens reached experts that have a fixed number of places: by one-hot matrix products, then by an index table.

Both give every expert a padded block (capacity, d_model), so that one batched product serves all experts.
`assign_places` says where each token stands in those blocks; the rest is two ways of carrying it there and back.
Neither drops anything: a router with a capacity ("switch", "gshard") has done that, and what does not fit is refused.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_lab.activations import activate, hidden_columns
from moe_lab.checks import show_value
from moe_lab.experts import check_arguments
from moe_lab.routers.capacity import queue_positions
from moe_lab.types import Routing

DISPATCHES = ("one_hot", "table")


def assign_places(routing: Routing, capacity: int) -> Int64[Tensor, "tokens slots"]:
    """Give every assignment its row in the experts' padded blocks, -1 for an empty slot.

    place = expert * capacity + how many assignments the expert had before, first choices counted before second ones
    and earlier tokens before later ones. So no two assignments share a place, and an expert's places fill from the
    front. Work: one sort of tokens * slots numbers.

    Example:
        >>> routing = Routing(torch.tensor([[1], [0], [1], [-1]]), torch.tensor([[1.0], [1.0], [1.0], [0.0]]), 2)
        >>> assign_places(routing, capacity=3).flatten()
        tensor([ 3,  0,  4, -1])

    Raises TypeError for a capacity that is no whole number, ValueError for one below the largest load.
    Source: GShard (arXiv:2006.16668), algorithm 1, where the count is a cumulative sum over one-hot rows.
    """
    _check_capacity(routing, capacity)
    positions = queue_positions(routing.experts, routing.num_experts)
    return (routing.experts * capacity + positions).masked_fill(positions < 0, -1)


def one_hot_dispatch(
    x: Float[Tensor, "tokens d_model"], routing: Routing, capacity: int
) -> tuple[Float[Tensor, "num_experts capacity d_model"], Float[Tensor, "tokens num_experts capacity"]]:
    """Carry tokens to their experts by a matrix product with a mask of zeros and ones.

    inputs[e, c] = sum over t of mask[t, e, c] * x[t]; mask[t, e, c] is 1 where token t has place c of expert e. Returns
    the inputs, 0 in a place that nobody has, and the weights of the way back: mask * the token's routing weight.

    FLOPs: 2 * tokens * num_experts * capacity * d_model. Bytes: writes two masks of tokens * num_experts * capacity
    numbers and reads one. Every token is multiplied into every place, so one NaN in x reaches all experts. The masks
    are filled by index, which is cheaper than the original's product of two one-hot matrices.

    Example:
        >>> routing = Routing(torch.tensor([[1], [0]]), torch.tensor([[0.5], [1.0]]), num_experts=2)
        >>> inputs, combine_weights = one_hot_dispatch(torch.tensor([[3.0], [7.0]]), routing, capacity=1)
        >>> inputs.flatten(), combine_weights.flatten(1)
        (tensor([7., 3.]), tensor([[0.0000, 0.5000],
                [1.0000, 0.0000]]))

    Raises ValueError for a capacity below the largest load, or x and routing that differ in tokens or device.
    Source: GShard (arXiv:2006.16668), algorithm 2; Shazeer et al. 2018, Mesh-TensorFlow (arXiv:1811.02084).
    """
    _check_tokens(x, routing)
    places = assign_places(routing, capacity)
    token, slot = (places >= 0).nonzero(as_tuple=True)
    place = places[token, slot]
    shape = (routing.tokens, routing.num_experts, capacity)
    mask = x.new_zeros(shape).flatten(1).index_put((token, place), x.new_ones(()))
    weights = routing.weights.new_zeros(shape).flatten(1).index_put((token, place), routing.weights[token, slot])
    return torch.einsum("tec,td->ecd", mask.view(shape), x), weights.view(shape)


def one_hot_combine(
    expert_outputs: Float[Tensor, "num_experts capacity d_model"],
    combine_weights: Float[Tensor, "tokens num_experts capacity"],
) -> Float[Tensor, "tokens d_model"]:
    """Carry the experts' answers back to their tokens, weighted, by a second matrix product.

    y[t] = sum over e, c of combine_weights[t, e, c] * expert_outputs[e, c]; a token without a place gets 0. Sums run in
    the wider of the two dtypes, and y has the dtype of the outputs.

    FLOPs: 2 * tokens * num_experts * capacity * d_model. Bytes: reads tokens * num_experts * capacity weights.

    Example:
        >>> one_hot_combine(torch.tensor([[[4.0]], [[6.0]]]), torch.tensor([[[0.0], [0.5]], [[0.0], [0.0]]])).flatten()
        tensor([3., 0.])

    Raises ValueError for shapes that do not fit together.
    Source: GShard (arXiv:2006.16668), algorithm 2.
    """
    if combine_weights.dim() != 3 or expert_outputs.shape[:2] != combine_weights.shape[1:]:
        raise ValueError(
            "combine_weights must be (tokens, num_experts, capacity) for expert_outputs (num_experts, capacity, "
            f"d_model), got {tuple(combine_weights.shape)} and {tuple(expert_outputs.shape)}"
        )
    wide = torch.promote_types(expert_outputs.dtype, combine_weights.dtype)
    y = torch.einsum("tec,ecd->td", combine_weights.to(wide), expert_outputs.to(wide))
    return y.to(expert_outputs.dtype)


def index_table(routing: Routing, capacity: int) -> Int64[Tensor, "num_experts capacity"]:
    """Write down which token stands in each place of each expert, -1 where nobody does.

    The same facts as the one-hot mask, in num_experts * capacity numbers instead of tokens times as many.

    Example:
        >>> routing = Routing(torch.tensor([[1], [0], [1]]), torch.ones(3, 1), num_experts=2)
        >>> index_table(routing, capacity=2)
        tensor([[ 1, -1],
                [ 0,  2]])

    Raises: see `assign_places`.
    Source: DeepSpeed-MoE (arXiv:2201.05596), section 5.4: the token-to-expert mapping table.
    """
    return _table(assign_places(routing, capacity), routing.num_experts, capacity)


def table_dispatch(
    x: Float[Tensor, "tokens d_model"], routing: Routing, capacity: int
) -> tuple[Float[Tensor, "num_experts capacity d_model"], Int64[Tensor, "tokens slots"]]:
    """Carry tokens to their experts by looking up, for every place, which token belongs there.

    inputs[e, c] = x[index_table[e, c]], 0 in a place that nobody has. Returns the inputs, and each token's places for
    the way back. The inputs equal those of `one_hot_dispatch`, except that a NaN stays with its own token.

    FLOPs: 0. Bytes: reads tokens * slots rows of x and writes num_experts * capacity rows.

    Example:
        >>> routing = Routing(torch.tensor([[1], [0]]), torch.tensor([[0.5], [1.0]]), num_experts=2)
        >>> inputs, places = table_dispatch(torch.tensor([[3.0], [7.0]]), routing, capacity=1)
        >>> inputs.flatten(), places.flatten()
        (tensor([7., 3.]), tensor([1, 0]))

    Raises ValueError for a capacity below the largest load, or x and routing that differ in tokens or device.
    Source: DeepSpeed-MoE (arXiv:2201.05596), section 5.4.
    """
    _check_tokens(x, routing)
    places = assign_places(routing, capacity)
    table = _table(places, routing.num_experts, capacity).flatten()
    rows = torch.cat([x, x.new_zeros(1, x.shape[1])])  # the row that an empty place reads
    inputs = rows.index_select(0, table.masked_fill(table < 0, x.shape[0]))
    return inputs.view(routing.num_experts, capacity, x.shape[1]), places


def table_combine(
    expert_outputs: Float[Tensor, "num_experts capacity d_model"],
    places: Int64[Tensor, "tokens slots"],
    weights: Float[Tensor, "tokens slots"],
) -> Float[Tensor, "tokens d_model"]:
    """Carry the experts' answers back to their tokens: look up each token's places, and add up with its weights.

    y[t] = sum over slots s of weights[t, s] * expert_outputs[places[t, s]], places counted through all experts; a slot
    without a place adds 0. Sums run in the wider of the two dtypes, and y has the dtype of the outputs.

    FLOPs: 2 * tokens * slots * d_model. Bytes: reads tokens * slots rows and writes tokens rows.

    Example:
        >>> outputs, weights = torch.tensor([[[4.0]], [[6.0]]]), torch.tensor([[0.5], [0.0]])
        >>> table_combine(outputs, torch.tensor([[1], [-1]]), weights).flatten()
        tensor([3., 0.])

    Raises ValueError for shapes that do not fit together, or a place that no expert has.
    Source: DeepSpeed-MoE (arXiv:2201.05596), section 5.4.
    """
    rows = expert_outputs.flatten(0, 1)
    if places.dim() != 2 or places.shape != weights.shape:
        raise ValueError(
            f"places and weights must both be (tokens, slots), got {tuple(places.shape)} and {tuple(weights.shape)}"
        )
    if places.numel() and not -1 <= int(places.min()) <= int(places.max()) < len(rows):
        raise ValueError(
            f"places must lie in -1..{len(rows) - 1} (num_experts * capacity = {len(rows)}), "
            f"found {int(places.min())}..{int(places.max())}"
        )
    wide = torch.promote_types(rows.dtype, weights.dtype)
    rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # the row that an empty slot reads
    answers = rows.index_select(0, places.masked_fill(places < 0, len(rows) - 1).flatten())
    answers = answers.view(*places.shape, rows.shape[1])  # (tokens, slots, d_model)
    return torch.einsum("ts,tsd->td", weights.to(wide), answers.to(wide)).to(rows.dtype)


def capacity_mlp(
    x: Float[Tensor, "tokens d_model"],
    routing: Routing,
    w_gate_up: Float[Tensor, "num_experts hidden d_model"],
    w_down: Float[Tensor, "num_experts d_model d_expert"],
    capacity: int,
    *,
    activation: str = "swiglu",
    dispatch: str = "table",
) -> Float[Tensor, "tokens d_model"]:
    """Apply to each token its experts, all at once, as batched products over blocks padded to ``capacity`` rows.

    The function of `expert_mlp`, with its layouts of the weights; tokens travel as in GShard (``dispatch="one_hot"``)
    or as in DeepSpeed-MoE (``"table"``). Differentiable in x, both weights and ``routing.weights``.

    FLOPs: ``expert_flops(num_experts * capacity, ...)``, padding included, and those of the dispatch. A capacity of
    ``routing.load.max()`` is the least that fits.

    Example:
        >>> x = torch.eye(2)
        >>> routing = Routing(torch.tensor([[1], [-1]]), torch.tensor([[0.5], [0.0]]), num_experts=2)
        >>> w_up, w_down = torch.ones(2, 3, 2), torch.ones(2, 2, 3)
        >>> capacity_mlp(x, routing, w_up, w_down, capacity=1, activation="relu")
        tensor([[1.5000, 1.5000],
                [0.0000, 0.0000]])

    Raises ValueError for a capacity below the largest load (nothing is dropped in silence) or an unknown dispatch;
    otherwise as `expert_mlp`.
    Source: GShard (arXiv:2006.16668), algorithm 2.
    """
    check_arguments(x, routing, w_gate_up, w_down, activation)
    _check_dispatch(dispatch)
    if dispatch == "one_hot":
        inputs, combine_weights = one_hot_dispatch(x, routing, capacity)
    else:
        inputs, places = table_dispatch(x, routing, capacity)
    hidden = torch.bmm(inputs, w_gate_up.mT)  # (num_experts, capacity, hidden)
    outputs = torch.bmm(activate(hidden, activation), w_down.mT)  # (num_experts, capacity, d_model)
    if dispatch == "one_hot":
        return one_hot_combine(outputs, combine_weights)
    return table_combine(outputs, places, routing.weights)


def carry(
    x: Float[Tensor, "tokens d_model"], routing: Routing, capacity: int, *, dispatch: str = "table"
) -> Float[Tensor, "tokens d_model"]:
    """Carry tokens to their places and straight back, with no expert in between: what a timing of dispatch times.

    y[t] = x[t] * sum of the token's weights, 0 for a token without a place. FLOPs: `one_hot_flops` or `table_flops`.

    Example:
        >>> routing = Routing(torch.tensor([[1], [-1]]), torch.tensor([[0.5], [0.0]]), num_experts=2)
        >>> carry(torch.tensor([[3.0], [7.0]]), routing, capacity=1).flatten()
        tensor([1.5000, 0.0000])

    Raises ValueError for a capacity below the largest load, an unknown dispatch, or x and routing that do not fit.
    """
    _check_dispatch(dispatch)
    if dispatch == "one_hot":
        return one_hot_combine(*one_hot_dispatch(x, routing, capacity))
    return table_combine(*table_dispatch(x, routing, capacity), routing.weights)


def one_hot_flops(tokens: int, num_experts: int, capacity: int, d_model: int) -> int:
    """FLOPs of `one_hot_dispatch` and `one_hot_combine` together: 4 * tokens * num_experts * capacity * d_model.

    With capacity = capacity_factor * top_k * tokens / num_experts this is 4 * capacity_factor * top_k * tokens^2 *
    d_model: quadratic in tokens, and the number of experts cancels.

    Example:
        >>> one_hot_flops(tokens=6, num_experts=3, capacity=3, d_model=2)
        432

    Raises ValueError for sizes below 0.
    """
    _check_sizes(tokens=tokens, num_experts=num_experts, capacity=capacity, d_model=d_model)
    return 4 * tokens * num_experts * capacity * d_model


def table_flops(tokens: int, slots: int, d_model: int) -> int:
    """FLOPs of `table_dispatch` (none: it only copies) and `table_combine`: 2 * tokens * slots * d_model.

    PyTorch's counter sees them from two slots on; for one slot einsum is a plain multiplication, which it leaves out.

    Example:
        >>> table_flops(tokens=6, slots=1, d_model=2)
        24

    Raises ValueError for sizes below 0.
    """
    _check_sizes(tokens=tokens, slots=slots, d_model=d_model)
    return 2 * tokens * slots * d_model


def expert_flops(rows: int, d_model: int, d_expert: int, activation: str = "swiglu") -> int:
    """FLOPs of the experts' two products: 2 * rows * d_model * (hidden + d_expert), hidden 2 * d_expert with a gate.

    ``rows`` is num_experts * capacity where blocks are padded (`capacity_mlp`), and the assignments alone where they
    are not (`expert_mlp`). The activation between the products is not counted, nor is the weighted sum.

    Example:
        >>> expert_flops(rows=9, d_model=2, d_expert=4), expert_flops(rows=9, d_model=2, d_expert=4, activation="relu")
        (432, 288)

    Raises ValueError for sizes below 0 or an unknown activation.
    """
    _check_sizes(rows=rows, d_model=d_model, d_expert=d_expert)
    return 2 * rows * d_model * (hidden_columns(activation, d_expert) + d_expert)


def _table(places: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Turn the places of the tokens round: the token of each place, -1 for nobody."""
    token, slot = (places >= 0).nonzero(as_tuple=True)
    table = torch.full((num_experts * capacity,), -1, dtype=torch.int64, device=places.device)
    return table.index_copy(0, places[token, slot], token).view(num_experts, capacity)


def _check_capacity(routing: Routing, capacity: int) -> None:
    """Refuse a capacity that does not hold every expert's load."""
    if not isinstance(routing, Routing):
        raise TypeError(f"routing must be a Routing, got {type(routing).__name__}")
    if isinstance(capacity, bool) or not isinstance(capacity, int):
        raise TypeError(f"capacity must be a whole number, got {show_value(capacity)}")
    most = (2**63 - 1) // routing.num_experts  # places are counted through all experts, in int64
    if capacity > most:
        given = show_value(capacity)
        raise ValueError(f"capacity must be at most {most} for {routing.num_experts} experts, got {given}")
    load = routing.load
    busiest = int(load.argmax())
    if capacity < int(load[busiest]) or capacity < 0:
        raise ValueError(
            f"capacity must be at least the largest load, {int(load[busiest])} (expert {busiest}), got "
            f'{show_value(capacity)}; routers that drop what does not fit are "switch" and "gshard"'
        )


def _check_dispatch(dispatch: str) -> None:
    """Refuse a way of carrying that is not here."""
    if dispatch not in DISPATCHES:
        raise ValueError(f"dispatch must be one of {', '.join(DISPATCHES)}; got {dispatch!r}")


def _check_tokens(x: Tensor, routing: Routing) -> None:
    """Refuse tokens that the routing does not speak of."""
    if not isinstance(routing, Routing):
        raise TypeError(f"routing must be a Routing, got {type(routing).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() != 2 or x.shape[0] != routing.tokens:
        raise ValueError(f"x must be (tokens={routing.tokens}, d_model) like the routing, got {tuple(x.shape)}")
    if x.device != routing.experts.device:
        raise ValueError(f"routing is on {routing.experts.device} and x on {x.device}; they must be on one device")


def _check_sizes(**sizes: int) -> None:
    """Refuse sizes that are not whole numbers of at least 0."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {show_value(size)}")
