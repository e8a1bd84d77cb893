"""SwiGLU as triton_kernels takes it for the epilogue of a product, on columns gate 0, up 0, gate 1, up 1, ...

The one that comes with the package is gpt-oss's, silu(alpha * gate) * (up + 1) with a limit.
"""

import triton
import triton.language as tl


@triton.jit
def swiglu(hidden):
    """From (rows, 2 * columns) to silu(gate) * up, (rows, columns)."""
    gate, up = tl.split(tl.reshape(hidden, (hidden.shape[0], hidden.shape[1] // 2, 2)))
    return gate * tl.sigmoid(gate) * up
