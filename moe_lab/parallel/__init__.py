"""Experts over several ranks on torch.distributed: the exchange, its bytes, placement, clusters that are not here."""
