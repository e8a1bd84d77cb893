"""Every implementation of the experts that this library is measured against, and its own, behind one interface.

One file a package. Importing this imports none of them: what is not installed is a row that says so.
"""

from moe_lab.bench.peers.dense import DENSE
from moe_lab.bench.peers.flag_gems import FLAG_GEMS
from moe_lab.bench.peers.interface import DIRECTIONS, Peer, Prepared, refusal, why_not
from moe_lab.bench.peers.liger import LIGER
from moe_lab.bench.peers.moe_ops import MOE_OPS
from moe_lab.bench.peers.ours import our_backend
from moe_lab.bench.peers.scattermoe import SCATTERMOE
from moe_lab.bench.peers.sonicmoe import SONICMOE
from moe_lab.bench.peers.torch_grouped import TORCH_GROUPED
from moe_lab.bench.peers.transformers import BATCHED_MM, EAGER, GROUPED_MM, OURS
from moe_lab.bench.peers.triton_kernels import TRITON_KERNELS
from moe_lab.bench.peers.verification import TOLERANCES, reference_of, verify

__all__ = ["DIRECTIONS", "PEERS", "TOLERANCES", "Peer", "Prepared", "reference_of", "refusal", "verify", "why_not"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        DENSE,
        our_backend("moe_lab triton (save=fast)", backend="triton", save="fast"),
        our_backend("moe_lab triton (save=min)", backend="triton", save="min"),
        our_backend("moe_lab grouped", backend="grouped"),
        our_backend("moe_lab loop", backend="loop"),
        OURS,
        TORCH_GROUPED,
        GROUPED_MM,
        BATCHED_MM,
        EAGER,
        LIGER,
        MOE_OPS,
        TRITON_KERNELS,
        FLAG_GEMS,
        SCATTERMOE,
        SONICMOE,
    )
}
"""Name -> implementation, in the order of a table: the limit, our own, PyTorch's, everybody else's."""
