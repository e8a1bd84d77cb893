"""Counting what a model costs: parameters, FLOPs, memory."""
