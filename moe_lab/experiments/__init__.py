"""Grids of small training runs, each defined in one file, resumable, recorded in ``data/training/``."""
