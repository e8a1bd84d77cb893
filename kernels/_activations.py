"""What stands between an expert's two products, on tiles in float32: the functions and their derivatives."""

import torch.nn.functional as F
import triton
import triton.language as tl

FUNCTIONS = {
    "swiglu": ("silu", True),
    "geglu": ("gelu", True),
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "silu": ("silu", False),
}
"""Name of an activation -> (function, whether it is gated: function(gate) * up)."""


def find_function(activation):
    """The function of an activation and whether it is gated, or a ValueError."""
    if activation not in FUNCTIONS:
        raise ValueError(f"activation must be one of {', '.join(FUNCTIONS)}; got {activation!r}")
    return FUNCTIONS[activation]


def activate_reference(hidden, activation):
    """function(gate) * up of [gate, up] side by side, or the function itself: what `grouped_up` has in its epilogue."""
    function, gated = find_function(activation)
    if not gated:
        return REFERENCES[function](hidden)
    gate, up = hidden.chunk(2, dim=-1)
    return REFERENCES[function](gate) * up


REFERENCES = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
"""What the functions below are held against."""


@triton.jit
def apply_function(z, FUNCTION: tl.constexpr):
    """silu(z) = z * sigmoid(z); gelu(z) = z * Phi(z), with the error function; relu(z) = max(z, 0)."""
    if FUNCTION == "silu":
        return z * tl.sigmoid(z)
    elif FUNCTION == "gelu":
        return z * 0.5 * (1 + tl.erf(z * 0.7071067811865476))  # 1 / sqrt(2)
    else:
        return tl.where(z < 0, 0.0, z)  # not max: a NaN stays one


@triton.jit
def differentiate(z, FUNCTION: tl.constexpr):
    """The derivative of `apply_function` at z; that of relu at 0 is 0, as in PyTorch."""
    if FUNCTION == "silu":
        sigmoid = tl.sigmoid(z)
        return sigmoid * (1 + z * (1 - sigmoid))
    elif FUNCTION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)  # 1 / sqrt(2 pi)
        return 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * density
    else:
        return tl.where(z > 0, 1.0, 0.0)
