"""How long a thing takes, and where the time goes."""

from moe_lab.profiling.timing import Timing, time_interleaved

__all__ = ["Timing", "time_interleaved"]
