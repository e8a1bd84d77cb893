"""A worker: ``python -m moe_lab.machine_code.worker LOG [FOLDER]``; requests on stdin, answers on stdout, JSON by line.

A request names what to ``do``. Each answer to it is a line; the last one is ``{"end": true}`` or ``{"failed": why}``.
LOG is the file that the standard error goes to, in which the compiler's passes explain themselves.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path


def serve(log: Path, folder: str | None) -> None:
    """Answer until there are no more requests."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed, by kernels or compilers, must not stand between the answers

    def say(**answer) -> None:
        if row := answer.get("row"):
            add_diagnostics(row, log)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    for line in sys.stdin:
        log.write_bytes(b"")  # what stands there from here on belongs to this request
        try:
            answer_one(json.loads(line), folder, say)
            say(end=True)
        except Exception as error:
            from moe_lab.machine_code.launches import explain

            failed = {"error": explain(error)}
            add_diagnostics(failed, log)
            say(failed=failed["error"])


def answer_one(request: dict, folder: str | None, say: Callable[..., None]) -> None:
    """Do what a request asks for."""
    do = request.pop("do")
    if do == "source":
        from moe_lab.machine_code.reader_kernel import compile_source

        say(**compile_source(**request))
        return
    import triton

    from moe_lab.machine_code import launches

    names = launches.kernel_names(folder)
    if do == "kernels":
        say(kernels=names, triton=triton.__version__)
    elif do == "ways":
        say(**launches.ways_to_launch(**request))
    else:
        launches.compile_launches(**request, say=say)


def add_diagnostics(row: dict, log: Path) -> None:
    """A pass that fails raises nothing but its name; what was wrong stands in the log."""
    if "PassManager::run failed" in (row.get("error") or ""):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if "error:" in line]
        row["error"] = "\n".join([row["error"], *said[:3]])
    log.write_bytes(b"")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
