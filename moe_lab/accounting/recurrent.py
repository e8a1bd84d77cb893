"""The building blocks of layers that carry a state along instead of attending: each as the parts it is made of."""

from moe_lab.accounting.blocks import linear, norm
from moe_lab.accounting.parts import Part, State, Weight


def causal_convolution(channels: int, kernel: int, *, bias: bool = False, component: str = "recurrent") -> list[Part]:
    """A convolution along the tokens, one filter a channel: a token meets itself and kernel - 1 tokens before it.

    Those kernel - 1 tokens are what a sequence keeps.

    Example:
        >>> [part.flops_per_token for part in causal_convolution(6, 4)]
        [48, 0]
    """
    parts: list[Part] = [Weight(component, (channels, kernel), kept=channels)]
    if bias:
        parts.append(Weight(component, (channels,), use="scale"))
    return [*parts, State(channels * (kernel - 1), 0, component)]


def linear_state(heads: int, key_dim: int, value_dim: int) -> list[Part]:
    """A matrix of key_dim x value_dim a head: a token adds the outer product of its key and value, and reads it once.

    FLOPs a token: 2 * heads * key_dim * value_dim to write, as many to read; decay is elementwise and not counted.
    Source: Katharopoulos et al. 2020 (arXiv:2006.16236), section 3.3.
    """
    size = heads * key_dim * value_dim
    return [State(size, 4 * size)]


def delta_state(heads: int, key_dim: int, value_dim: int) -> list[Part]:
    """`linear_state` by the delta rule: a token first reads what its key holds, and writes the difference.

    FLOPs a token: 2 * heads * key_dim * value_dim, three times over.
    Source: Schlag et al. 2021 (arXiv:2102.11174), section 4.2; gated: Yang et al. 2024 (arXiv:2412.06464), section 3.
    """
    size = heads * key_dim * value_dim
    return [State(size, 6 * size)]


def mamba(
    d_model: int, inner: int, state_dim: int, step_rank: int, kernel: int, *, bias: bool, conv_bias: bool
) -> list[Part]:
    """The selective state-space layer: a state of state_dim numbers a channel, whose step comes through step_rank.

    Source: Gu and Dao 2023 (arXiv:2312.00752), algorithm 2 and section 3.4.
    """
    return [
        *linear("recurrent", d_model, 2 * inner, bias=bias),
        *causal_convolution(inner, kernel, bias=conv_bias),
        *linear("recurrent", inner, step_rank + 2 * state_dim),
        *linear("recurrent", step_rank, inner, bias=True),
        Weight("recurrent", (inner, state_dim), use="scale"),
        Weight("recurrent", (inner,), use="scale"),
        *linear_state(inner, 1, state_dim),
        *linear("recurrent", inner, d_model, bias=bias),
    ]


def mamba2(
    d_model: int,
    heads: int,
    head_dim: int,
    state_dim: int,
    groups: int,
    kernel: int,
    *,
    bias: bool,
    conv_bias: bool,
) -> list[Part]:
    """Mamba-2: heads with one decay each, reading and writing directions shared by the heads of a group.

    Source: Dao and Gu 2024 (arXiv:2405.21060), section 7.1.
    """
    inner = heads * head_dim
    channels = inner + 2 * groups * state_dim
    return [
        *linear("recurrent", d_model, inner + channels + heads, bias=bias),
        *causal_convolution(channels, kernel, bias=conv_bias),
        Weight("recurrent", (heads,), 3, use="scale"),
        *linear_state(heads, state_dim, head_dim),
        *norm(inner),
        *linear("recurrent", inner, d_model, bias=bias),
    ]


def gated_delta_net(
    d_model: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int
) -> list[Part]:
    """Gated DeltaNet: the delta rule with one decay a head; value heads share keys in groups.

    Source: Yang et al. 2024 (arXiv:2412.06464), sections 3 and 3.4.
    """
    keys, values = key_heads * key_dim, value_heads * value_dim
    return [
        *linear("recurrent", d_model, 2 * keys + 2 * values),
        *linear("recurrent", d_model, 2 * value_heads),
        *causal_convolution(2 * keys + values, kernel),
        Weight("recurrent", (value_heads,), 2, use="scale"),
        *delta_state(value_heads, key_dim, value_dim),
        *norm(value_dim),
        *linear("recurrent", values, d_model),
    ]


def kimi_delta_attention(d_model: int, heads: int, head_dim: int, kernel: int, *, rank: int | None) -> list[Part]:
    """Kimi Delta Attention: the delta rule with one decay a channel; decay and output gate come through ``rank``.

    Where ``rank`` is None both are full matrices.
    Source: Kimi Linear (arXiv:2510.26692), sections 3 and 4.
    """
    width = heads * head_dim

    def gate() -> list[Part]:
        if rank is None:
            return linear("recurrent", d_model, width)
        return [*linear("recurrent", d_model, rank), *linear("recurrent", rank, width)]

    return [
        *linear("recurrent", d_model, 3 * width),
        *causal_convolution(3 * width, kernel),
        *gate(),
        Weight("recurrent", (width,), use="scale"),
        Weight("recurrent", (heads,), use="scale"),
        *linear("recurrent", d_model, heads),
        *delta_state(heads, head_dim, head_dim),
        *gate(),
        *norm(head_dim),
        *linear("recurrent", width, d_model),
    ]
