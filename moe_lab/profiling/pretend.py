"""A GPU that is only pretended, with a clock that jumps: to learn timing on a machine without one."""

from collections.abc import Callable, Iterable

from moe_lab.checks import check_number
from moe_lab.profiling.categories import category_of
from moe_lab.profiling.trace import CPU_LANE, GPU_LANE, Trace, TraceEvent

Kernel = tuple[str, float | int]
"""A name, and for how many microseconds it runs."""


class PretendGpu:
    """A queue of kernels that run one after another, while the CPU that launched them goes on.

    A launch takes ``launch_us`` of the CPU's time; its kernel starts when the launch is over and the kernel before it
    has finished. `now` is the CPU's clock in seconds, as ``time.perf_counter`` is; nothing but the methods here moves
    it. ``slowdown`` says how many times as long a kernel takes that starts after so many microseconds: a chip that
    grows hot.

    Example:
        >>> gpu = PretendGpu(launch_us=5)
        >>> gpu.launch("gemm", 100)
        >>> round(1e6 * gpu.now())
        5
        >>> gpu.synchronize()
        >>> round(1e6 * gpu.now())
        105

    Raises ValueError or TypeError for a time below 0.
    """

    def __init__(self, launch_us: float | int = 5.0, slowdown: Callable[[float], float | int] = lambda us: 1.0):
        self.launch_us = check_number("launch_us", launch_us, at_least=0)
        self.slowdown = slowdown
        self._cpu_us = self._gpu_us = 0.0
        self._events: list[TraceEvent] = []

    def now(self) -> float:
        """The CPU's clock, in seconds."""
        return self._cpu_us / 1e6

    def work(self, name: str, duration_us: float | int) -> None:
        """Keep the CPU busy."""
        check_number("duration_us", duration_us, at_least=0)
        self._add(name, CPU_LANE, self._cpu_us, duration_us)
        self._cpu_us += duration_us

    def launch(self, name: str, duration_us: float | int) -> None:
        """Put one kernel into the queue."""
        self.replay([(name, duration_us)])

    def replay(self, kernels: Iterable[Kernel]) -> None:
        """Put several kernels into the queue with one launch, as a CUDA graph does."""
        kernels = list(kernels)
        self.work("launch", self.launch_us)
        for name, duration_us in kernels:
            check_number("duration_us", duration_us, at_least=0)
            start = max(self._gpu_us, self._cpu_us)
            took = duration_us * self.slowdown(start)
            self._add(name, f"{GPU_LANE} 0", start, took)
            self._gpu_us = start + took

    def synchronize(self) -> None:
        """Let the CPU wait until the queue is empty."""
        self._cpu_us = max(self._cpu_us, self._gpu_us)

    def trace(self, name: str) -> Trace:
        """All that happened until now, in the form of a profile that says what it is."""
        about = {"implementation": name, "direction": "forward", "dtype": "none", "shape": {}, "kind": "cuda"}
        about |= {"device": "a pretended GPU", "date": "no measurement", "commit": "none", "versions": {}}
        about["versions"] = {"launches of": f"{self.launch_us:g} µs"}
        return Trace(about | {"call_us": max(self._cpu_us, self._gpu_us)}, list(self._events))

    def _add(self, name: str, lane: str, start_us: float, duration_us: float | int) -> None:
        self._events.append(TraceEvent(name, category_of(name), lane, start_us, duration_us))
