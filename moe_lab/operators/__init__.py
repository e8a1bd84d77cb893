"""Operators that PyTorch dispatches, so that autograd, ``torch.compile`` and `flop_counter` know them."""
