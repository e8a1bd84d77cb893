"""Experts over several ranks on torch.distributed: the exchange, its bytes, placement, clusters that are not here."""

PRELOADED = ["moe_lab.parallel.launch", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint"]
"""What the process that ranks of `launch.run_ranks` are forked from imports, so that they need not."""
