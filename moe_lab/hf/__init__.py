"""Transformers' models on this library: their experts on our operators."""

from moe_lab.hf.checkpoints import at_hand, load
from moe_lab.hf.export import export
from moe_lab.hf.families import families
from moe_lab.hf.saving import load_watch
from moe_lab.hf.serving import register, serve
from moe_lab.hf.watch import watch

__all__ = ["at_hand", "export", "families", "load", "load_watch", "register", "serve", "watch"]
