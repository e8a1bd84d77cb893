"""Transformers' models on this library: their experts on our operators."""

from moe_lab.hf.families import families
from moe_lab.hf.serving import register, serve

__all__ = ["families", "register", "serve"]
