"""CUDA graphs: many launches as one, so that what is timed is the GPU and not the way to it."""

from collections.abc import Callable

import torch

CALLS = 10
"""Calls in a graph: one sample of a timing is so many, and the wait for the GPU after it weighs a tenth."""


def capture(call: Callable[[], object], calls: int = CALLS) -> Callable[[], None]:
    """A function that replays ``calls`` calls, captured after a warm-up on a stream of their own.

    Raises what PyTorch raises where a call waits for the GPU or asks it for a number.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph.replay
