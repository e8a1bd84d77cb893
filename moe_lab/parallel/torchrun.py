"""torchrun for the ranks of one machine: ``python -m moe_lab.parallel.torchrun --nproc-per-node 4 -m moe_lab train``.

torchrun itself serves a store on every network, and reads from it what pickle then makes objects of: whoever reaches
the port can run code. Here the agents meet in a file that only its owner may read, and the ranks' store listens on the
loopback device.
"""

import sys

import torch.distributed as dist
from torch.distributed.run import main as run

from moe_lab.parallel.loopback import ADDRESS, open_store

ONE_MACHINE = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--local-addr={ADDRESS}")
ELSEWHERE = ("--standalone", "--nnodes", "--rdzv", "--master", "--node", "--local-addr")


def main(arguments: list[str] | None = None) -> None:
    """Run torchrun with its options; one that names other machines or another meeting place ends it with a sentence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own = arguments[: arguments.index("-m")] if "-m" in arguments else arguments
    for word in own:
        if word.replace("_", "-").startswith(ELSEWHERE):
            sys.exit(f"{word} is for torchrun itself; moe_lab.parallel.torchrun starts ranks on this machine alone")
    dist.TCPStore = open_store  # in this process, whose agent serves the store; the ranks are others
    run([*ONE_MACHINE, *arguments])


if __name__ == "__main__":
    main()
