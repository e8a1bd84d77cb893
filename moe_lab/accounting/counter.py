"""FLOPs counted while code runs: PyTorch's ``FlopCounterMode``, with formulas for the operators that it does not know.

PyTorch's own counter sees ``mm``, ``addmm``, ``bmm``, ``baddbmm``, convolutions and the attention kernels of GPUs. In
PyTorch 2.13 it counts 0 for ``_grouped_mm`` (the products of all experts in one call), attention on the CPU, matrix
times vector, and custom operators. `FORMULAS` has these, and `register_flops` adds to it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

import torch
from torch import Tensor

if "triton" not in sys.modules:  # PyTorch's counter imports it, and without a GPU its interpreter must be on by then
    import moe_lab.kernels  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from moe_lab.accounting.layer import expert_flops, linear_flops
from moe_lab.types import has_values

FORMULAS: dict[str, Callable[..., int]] = {}
"""Operator -> FLOPs of one call, by name, such as "aten._grouped_mm"; these go before PyTorch's own. Add to it with
`register_flops`. By name, because an operator may not exist (in an older PyTorch), or not yet (in a library that is
imported later)."""

PRODUCT_WORDS = {
    "mm",
    "bmm",
    "addmm",
    "mv",
    "addmv",
    "dot",
    "matmul",
    "linear",
    "trilinear",
    "rnn",
    "attention",
    "encoder",
}
"""Parts of the names of PyTorch's operators that hold products; one of these without a formula is ``uncounted``."""

QUIET_NAMESPACES = {"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional"}


class FlopCounter:
    """What `flop_counter` gives: counts between entering and leaving its ``with`` block."""

    def __init__(self) -> None:
        self._mode: FlopCounterMode | None = None
        self._formulas = _Formulas()
        self._open = False

    @property
    def by_op(self) -> dict[str, int]:
        """Operator -> FLOPs, such as {"aten.mm": 240}, in the order of their first calls; so far, inside the block."""
        counts = {} if self._mode is None else self._mode.get_flop_counts().get("Global", {})
        return {str(operator): int(flops) for operator, flops in counts.items()}

    @property
    def total_flops(self) -> int:
        """All FLOPs together; so far, inside the block."""
        return sum(self.by_op.values())

    @property
    def uncounted(self) -> dict[str, int]:
        """Operator -> calls, for those that ran without a formula and may hold products: the total lacks their work.

        Custom operators, whatever they do, and PyTorch's own whose name speaks of a product.
        """
        return dict(self._formulas.missed)

    def __enter__(self) -> "FlopCounter":
        if self._open:
            raise RuntimeError("this counter is counting already; nest a second flop_counter() instead")
        self._formulas = _Formulas()
        self._mode = FlopCounterMode(display=False)
        self._mode.flop_registry = self._formulas
        self._mode.__enter__()
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._mode.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"FlopCounter({self.total_flops} FLOPs in {len(self.by_op)} operators)"


def flop_counter() -> FlopCounter:
    """Count the FLOPs of every matrix product that runs inside the ``with`` block, backward passes included.

    One multiply-add is 2 FLOPs. ``counter.total_flops`` is the sum, ``counter.by_op`` has it by operator, and
    ``counter.uncounted`` names operators that ran without a formula. An operator is counted by the shapes it is called
    with, so the count is what was asked for: not the padding of tiles inside a kernel, and a masked (causal) attention
    as the full square. `grouped_mm_flops` reads the offsets too: rows beyond the last one do no work. Attention kernels
    compute the scores again on the way back, which is counted: 5 products backward after 2 forward.

    Blind to everything that is no product: activations, softmax, top-k, norms, index_add, sorting; an outer product by
    broadcasting. Blind to what PyTorch does not dispatch: Triton kernels launched by themselves (make them an operator
    with ``torch.library`` and give it a formula) and code under ``torch.compile``, so count in eager mode. Not counted,
    but named in ``uncounted``: recurrent layers, the fused ``nn.TransformerEncoderLayer`` of inference, ``F.bilinear``,
    sparse products and those of whole numbers. Convolutions go by PyTorch's formula, which takes the weight gradient of
    a grouped one for that of an ungrouped one.

    Each ``with`` starts from 0; its counts stay readable after it, and after an error in it those up to the error.
    Counters may be nested, closed in the reverse order: each counts all that its own thread runs inside of it, backward
    passes too, whose threads PyTorch brings along; not what other threads run. Offsets on a GPU are read, so the CPU
    waits for it once a call: never time inside a counter.

    Example:
        >>> with flop_counter() as counter:
        ...     y = torch.ones(3, 4) @ torch.ones(4, 5)
        >>> counter.total_flops, counter.by_op
        (120, {'aten.mm': 120})

    Raises RuntimeError for entering a counter that is counting already.
    """
    return FlopCounter()


def register_flops(*operators: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a formula for one or more operators: called with an operator's own arguments, it returns FLOPs.

    An operator is named as ``torch.library`` and ``counter.by_op`` name it, "namespace::name" or "namespace.name",
    without an overload: one formula serves all, ``out=`` variants too, so it takes ``**_`` for the arguments that it
    does not read. The operator need not exist yet. Its insides are not seen, so nothing is counted twice.

    Example:
        >>> @register_flops("moe_lab_example::twice_mm")
        ... def twice_mm_flops(left, right, **_):
        ...     return 2 * product_flops(left, right)
        >>> FORMULAS.pop("moe_lab_example.twice_mm")(torch.ones(3, 4), torch.ones(4, 5))
        240

    Raises TypeError for a formula that cannot be called; ValueError for a name that is none, or one that has another
    formula already (the same function again, as when a module is reloaded, is welcome).
    """
    names = [_operator_name(operator) for operator in operators]
    if not names:
        raise ValueError("operators must name at least one operator, got none")

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        if not callable(formula):
            raise TypeError(f"formula must be callable with the operator's arguments, got {type(formula).__name__}")
        for name in names:
            if name in FORMULAS and _identity(FORMULAS[name]) != _identity(formula):
                raise ValueError(f"{name} has a formula already, {_identity(FORMULAS[name])}")
        FORMULAS.update(dict.fromkeys(names, formula))
        return formula

    return register


def _operator_name(operator: str) -> str:
    """ "aten::mm" and "aten.mm" are one name, the second."""
    if not isinstance(operator, str):
        raise TypeError(f'an operator must be a name such as "aten::mm", got {type(operator).__name__}')
    parts = operator.replace("::", ".").split(".")
    if len(parts) != 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f'an operator must be named "namespace::name", without an overload; got {operator!r}')
    return ".".join(parts)


def _identity(formula: Callable[..., int]) -> str:
    return f"{getattr(formula, '__module__', '')}.{getattr(formula, '__qualname__', repr(formula))}"


class _Formulas(Mapping):
    """The table in which `FlopCounterMode` looks formulas up: ours by name, then PyTorch's, as they are just then."""

    def __init__(self) -> None:
        self.missed: Counter[str] = Counter()

    def __contains__(self, operator: object) -> bool:
        if isinstance(operator, torch._ops.OpOverload):
            return False  # asked before an operator is taken apart; what it is made of is counted then
        known = str(operator) in FORMULAS or operator in flop_registry
        if not known and _may_hold_products(str(operator)):
            self.missed[str(operator)] += 1
        return known

    def __getitem__(self, operator: object) -> Callable[..., int]:
        formula = FORMULAS.get(str(operator))
        if formula is None:
            return flop_registry[operator]
        return lambda *args, out_val=None, **kwargs: formula(*args, **kwargs)

    def __iter__(self) -> Iterator:
        return iter([*flop_registry, *FORMULAS])

    def __len__(self) -> int:
        return len(flop_registry) + len(FORMULAS)


def _may_hold_products(operator: str) -> bool:
    namespace, _, name = operator.partition(".")
    return namespace not in QUIET_NAMESPACES or not PRODUCT_WORDS.isdisjoint(name.split("_"))


@register_flops("aten.mv", "aten.dot", "aten.vdot", "aten._scaled_mm_v2")
def product_flops(left: Tensor, right: Tensor, *_: object, **__: object) -> int:
    """FLOPs of (..., m, k) times (..., k, n) or times a vector (k,): 2 * m * k * n, for each of a batch.

    Example:
        >>> product_flops(torch.ones(3, 4), torch.ones(4, 5)), product_flops(torch.ones(3, 4), torch.ones(4))
        (120, 24)
    """
    return 2 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1)


@register_flops(
    "aten.addmm_", "aten._addmm_activation", "aten.addmv", "aten.addmv_", "aten.addbmm", "aten.addbmm_", "aten.baddbmm_"
)
def added_product_flops(addend: Tensor, left: Tensor, right: Tensor, *_: object, **__: object) -> int:
    """FLOPs of addend + left @ right: those of the product; the addition goes with its last multiplication.

    Example:
        >>> added_product_flops(torch.ones(3, 5), torch.ones(3, 4), torch.ones(4, 5))
        120
    """
    return product_flops(left, right)


@register_flops("aten._grouped_mm")
def grouped_mm_flops(left: Tensor, right: Tensor, offs: Tensor | None = None, *_: object, **__: object) -> int:
    """FLOPs of a grouped product, 2 * m * k * n summed over its groups.

    ``offs`` (groups,) holds where each group ends in the dimension that the groups share out:

    - (m, k) x (groups, k, n): rows of m (an expert's rows with its matrix, forward and back to x);
    - (groups, m, k) x (k, n): columns of n;
    - (m, k) x (k, n) -> (groups, m, n): the inner k (the gradient of the experts' matrices);
    - (groups, m, k) x (groups, k, n): nothing is shared out, and there are no ``offs``.

    What lies beyond the last offset belongs to no group and is not multiplied. Offsets whose values cannot be read
    (meta and fake tensors) are taken to end with the dimension.

    Example:
        >>> rows, experts, offs = torch.ones(8, 4), torch.ones(3, 4, 16), torch.tensor([2, 2, 7])
        >>> grouped_mm_flops(rows, experts, offs) == 2 * 7 * 4 * 16
        True
    """
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    if left.dim() == right.dim() == 3:
        return 2 * left.shape[0] * m * k * n
    if right.dim() == 3:
        return 2 * _end(offs, m) * k * n
    if left.dim() == 3:
        return 2 * m * k * _end(offs, n)
    return 2 * m * _end(offs, k) * n


def _end(offs: Tensor | None, length: int) -> int:
    """Where the last group ends."""
    if offs is None or not has_values(offs):
        return length
    return int(offs[-1]) if offs.numel() else 0


def count_assignments(places: Tensor) -> int:
    """Entries that are not -1; all of them where a tensor holds no values, as if nothing had been dropped."""
    return int((places >= 0).sum()) if has_values(places) else places.numel()


@register_flops("aten._scaled_grouped_mm")
def _scaled_grouped_mm_flops(
    left: Tensor, right: Tensor, scale_a: Tensor, scale_b: Tensor, offs: Tensor | None = None, *_: object, **__: object
) -> int:
    return grouped_mm_flops(left, right, offs)


@register_flops("aten._scaled_grouped_mm_v2")
def _scaled_grouped_mm_v2_flops(left: Tensor, right: Tensor, *arguments: object, **named: object) -> int:
    # three arguments for the scales of each side come before the offsets
    return grouped_mm_flops(left, right, named["offs"] if "offs" in named else (*arguments, None)[6])


@register_flops("transformers.grouped_mm_fallback")
def _grouped_mm_fallback_flops(input: Tensor, weight: Tensor, offs: Tensor) -> int:
    return grouped_mm_flops(input, weight, offs)


@register_flops("transformers.grouped_mm_fallback_backward")
def _grouped_mm_fallback_backward_flops(input: Tensor, weight: Tensor, offs: Tensor, grad_output: Tensor) -> int:
    return 2 * grouped_mm_flops(input, weight, offs)  # both gradients in one call, wanted or not


@register_flops(
    "moe_lab::assign_evenly",
    "moe_lab::assign_in_order",
    "moe_lab::sinkhorn_prices",
    "moe_lab::topk_gate",
    "moe_lab::topk_gate_backward",
)
def _no_products(*_: object, **__: object) -> int:
    return 0


@register_flops("moe_lab::grouped_mlp", "moe_lab::triton_mlp", "moe_lab::decode_mlp")
def _mlp_flops(
    x: Tensor, experts: Tensor, weights: Tensor, w_gate_up: Tensor, w_down: Tensor, activation: str, *_: object
) -> int:
    """The rows that somebody asked for: padding is multiplied and not counted."""
    return expert_flops(count_assignments(experts), *w_down.shape[1:], activation).forward


def mlp_backward_flops(
    rows: int, w_gate_up: Tensor, w_down: Tensor, wanted: list[bool], recomputes: bool = False
) -> int:
    """FLOPs of the experts' backward pass, as far as ``wanted`` asks for x, weights, w_gate_up and w_down.

    Everything but the gradient of w_down begins with the product back through it; so does what is computed again.
    """
    need_x, need_weights, need_gate_up, need_down = wanted
    _, columns, d_model = w_gate_up.shape
    first = linear_flops(rows, d_model, columns, input_grad=need_x, weight_grad=need_gate_up)
    inner = need_x or need_weights or need_gate_up or recomputes
    return (first + linear_flops(rows, w_down.shape[2], d_model, input_grad=inner, weight_grad=need_down)).backward


@register_flops("moe_lab::grouped_mlp_backward")
def _grouped_mlp_backward_flops(
    dy: Tensor,
    x: Tensor,
    hidden: Tensor,
    order: Tensor,
    load: Tensor,
    weights: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    activation: str,
    wanted: list[bool],
) -> int:
    return mlp_backward_flops(int(load.sum()) if has_values(load) else order.numel(), w_gate_up, w_down, wanted)


@register_flops("moe_lab::grouped_linear")
def _grouped_linear_flops(rows: Tensor, weight: Tensor, load: Tensor) -> int:
    count = int(load.sum()) if has_values(load) else len(rows)
    return linear_flops(count, weight.shape[2], weight.shape[1]).forward


@register_flops("moe_lab::grouped_linear_backward")
def _grouped_linear_backward_flops(
    gradient: Tensor, rows: Tensor, weight: Tensor, load: Tensor, wanted: list[bool]
) -> int:
    count, (need_rows, need_weight) = int(load.sum()) if has_values(load) else len(rows), wanted
    return linear_flops(count, weight.shape[2], weight.shape[1], input_grad=need_rows, weight_grad=need_weight).backward


@register_flops(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    """FLOPs of attention, forward: scores = query @ key^T and scores @ value, for each head of the queries.

    query is (batch, heads, queries, d_score), key (batch, kv_heads, keys, d_score), value (batch, kv_heads, keys,
    d_value): 2 * batch * heads * queries * keys * (d_score + d_value). A mask leaves nothing out.

    Example:
        >>> attention_flops(torch.ones(1, 4, 10, 8), torch.ones(1, 2, 10, 8), torch.ones(1, 2, 10, 8))
        12800
    """
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


@register_flops(
    "aten._scaled_dot_product_flash_attention_for_cpu_backward",
    "aten._scaled_dot_product_flash_attention_backward",
    "aten._scaled_dot_product_efficient_attention_backward",
    "aten._scaled_dot_product_cudnn_attention_backward",
    "aten._scaled_dot_product_fused_attention_overrideable_backward",
)
def attention_backward_flops(dy: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    """FLOPs of attention, backward: the scores again, then the gradients of scores, value, query and key.

    2 * batch * heads * queries * keys * (3 * d_score + 2 * d_value).

    Example:
        >>> query = key = value = torch.ones(1, 4, 10, 8)
        >>> attention_backward_flops(query, query, key, value) / attention_flops(query, key, value)
        2.5
    """
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])
