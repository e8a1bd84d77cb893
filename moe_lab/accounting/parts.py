"""What a model is made of, as far as counting goes: weights, attention between tokens, and states that run along."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

COMPONENTS = (
    "embedding",
    "attention",
    "recurrent",
    "router",
    "experts",
    "shared_experts",
    "dense_mlp",
    "norms",
    "output",
    "vision",
)
"""What the tables show, in the order in which a token meets it; recurrent: linear attention and state-space layers."""

STREAMS = ("text", "encoder", "decoder", "image")
"""The tokens that a part processes. A decoder-only model has "text"; "image" patches are not counted per text token."""


@dataclass(frozen=True)
class Weight:
    """``copies`` equal weights of one shape, of which a token uses ``used``.

    ``use``: "product", a matrix product or a convolution along the tokens, 2 FLOPs for each number and token; "scale",
    elementwise, which FLOP counts leave out; "lookup", a row is read. ``stored`` is False for a weight that is shared
    with another one (a tied output projection), which is multiplied again but takes no memory. ``kept`` is how many
    numbers a token leaves behind for the backward pass, for each copy used.
    """

    component: str
    shape: tuple[int, ...]
    copies: int = 1
    used: int | None = None
    use: str = "product"
    stored: bool = True
    kept: int = 0
    stream: str = "text"

    def __post_init__(self) -> None:
        for name, allowed in (("component", COMPONENTS), ("stream", STREAMS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")

    @property
    def numbers(self) -> int:
        """Numbers in one copy."""
        return math.prod(self.shape)

    @property
    def uses(self) -> int:
        """Copies that one token uses."""
        return self.copies if self.used is None else self.used

    @property
    def params(self) -> int:
        """Parameters that are stored."""
        return self.numbers * self.copies if self.stored else 0

    @property
    def active_params(self) -> int:
        """Parameters that one token uses."""
        return self.numbers * self.uses if self.stored else 0

    @property
    def flops_per_token(self) -> int:
        """2 FLOPs, a multiplication and an addition, for each number that multiplies a token."""
        return 2 * self.numbers * self.uses if self.use == "product" else 0


@dataclass(frozen=True)
class Attention:
    """Softmax attention of one layer: each query meets keys of ``score_dim`` and sums values of ``value_dim``.

    FLOPs for each pair of a query and a key: 2 * heads * (score_dim + value_dim). ``cached`` is how many numbers a
    key leaves in the cache. What a query meets of the keys before it and its own: of the last ``window`` all; those of
    its own ``chunk`` of tokens; the ``chosen`` ones that suit it best, though all stay cached; one key for each full
    block of ``every`` tokens.
    """

    heads: int
    score_dim: int
    value_dim: int
    cached: int
    window: int | None = None
    causal: bool = True
    queries: str = "text"
    keys: str = "text"
    component: str = "attention"
    chunk: int | None = None
    chosen: int | None = None
    every: int = 1

    def met(self, context: int) -> int:
        """Keys that the last of ``context`` tokens meets: what the mask leaves."""
        if self.chunk is not None:
            context = (context - 1) % self.chunk + 1 if context else 0
        bounds = [bound for bound in (self.window, self.chosen) if bound is not None]
        return min(context // self.every, context, *bounds)

    def remembered(self, context: int) -> int:
        """Keys in the cache after ``context`` tokens."""
        kept = [bound for bound in (self.window, self.chunk) if bound is not None]
        return min(context // self.every, context, *kept)

    @property
    def flops_per_pair(self) -> int:
        """FLOPs of the two products, for one query and one key, over all heads."""
        return 2 * self.heads * (self.score_dim + self.value_dim)

    def pairs(self, queries: int, keys: int, skip_masked: bool) -> int:
        """Pairs of a query and a key: those that the mask leaves, or all, as a kernel that skips none computes them."""
        if not skip_masked or (not self.causal and self.window is None):
            return queries * (keys // self.every)
        if not self.causal:
            window = min(self.window, keys)
            rising, late = min(queries, keys - window), max(0, queries - window)
            ends = rising * window + rising * (rising - 1) // 2 + (queries - rising) * keys
            return ends - late * (late + 1) // 2  # the first key each query may not meet, less the first it may
        if self.chunk is not None:
            chunks, rest = divmod(queries, self.chunk)
            alone = replace(self, chunk=None)
            return chunks * alone.pairs(self.chunk, self.chunk, True) + alone.pairs(rest, rest, True)
        blocks, bound = queries // self.every, min(b for b in (self.window, self.chosen, queries) if b is not None)
        full = max(0, min(bound, blocks - 1))  # queries after block j meet j keys, each block of queries the same
        before = full * (full + 1) // 2 + max(0, blocks - 1 - full) * bound
        return self.every * before + (queries - self.every * blocks + 1) * min(blocks, bound)


@dataclass(frozen=True)
class State:
    """A recurrent state of one layer: its size, and the multiply-adds with which a token reads and writes it.

    FLOPs are those of the recurrent form, token by token; kernels that work in chunks execute more.
    """

    elements: int
    flops_per_token: int
    component: str = "recurrent"
    stream: str = "text"


Part = Weight | Attention | State


@dataclass(frozen=True)
class Architecture:
    """All parts of a model, and the sizes that its summary names."""

    model_type: str
    parts: tuple[Part, ...]
    d_model: int
    num_layers: int
    moe_layers: int
    num_experts: int
    top_k: int
    remarks: tuple[str, ...] = field(default=())

    @property
    def weights(self) -> list[Weight]:
        """The parts that are weights."""
        return [part for part in self.parts if isinstance(part, Weight)]

    @property
    def encoder_decoder(self) -> bool:
        """Whether a sequence is two: one that is read and one that is written."""
        return any(weight.stream == "decoder" for weight in self.weights)


def on_stream(parts: Iterable[Part], stream: str, component: str | None = None) -> list[Part]:
    """The same parts for the tokens of another stream, or under another component of the table."""
    moved = []
    for part in parts:
        where = (
            {"queries": stream, "keys": part.keys if part.keys != "text" else stream}
            if isinstance(part, Attention)
            else {"stream": stream}
        )
        moved.append(replace(part, **where, **({"component": component} if component else {})))
    return moved
