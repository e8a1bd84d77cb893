"""Formats of files under atheris, which learns from the lines that an input reaches which input to try next.

``python -m tests.fuzz.guided --out FOLDER --runs 2000 --seconds 60 --seed 1`` tries all of `GUIDED`, a process each;
`make fuzz` does that. A failure leaves the input in ``FOLDER/FORMAT``; ``... --replay FORMAT FILE`` shows it again.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from .cases import TALLY
from .damage import changed_file

SIDE_BY_SIDE = 2
LONGEST = 2**16  # bytes of an input; the files of the corpus are far smaller


def main() -> None:
    options = read_options()
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install 'moe-lab[fuzz]', on Linux with Python 3.11 to 3.13")
    with atheris.instrument_imports(include=["moe_lab"]):
        from . import formats
    if options.replay:
        name, file = options.replay
        content = Path(file).read_bytes()
        return formats.try_bytes(name, content, formats.prepare(name, Path(tempfile.mkdtemp())))
    waiting, running, failed = [*formats.GUIDED], {}, []
    while waiting or running:
        while waiting and len(running) < SIDE_BY_SIDE:
            name = waiting.pop(0)
            child = os.fork()  # imported and instrumented once; atheris ends its process, and never comes back
            if not child:
                try_format(atheris, formats, name, options)
            running[child] = name
        child, status = os.wait()
        name = running.pop(child)
        failed += [name] if status else []
    sys.exit(f"failed: {', '.join(failed)}; the inputs are in {options.out}" if failed else 0)


def try_format(atheris, formats, name: str, options: argparse.Namespace) -> None:
    """Let atheris try one format from its valid files on; does not return."""
    form, out, tried = formats.FORMATS[name], options.out / name, 0
    folder, corpus = formats.prepare(name, out / "files"), out / "corpus"
    corpus.mkdir(parents=True)
    for number, content in enumerate(form.wholes()):
        (corpus / str(number)).write_bytes(content)

    def try_one(content: bytes) -> None:
        nonlocal tried
        TALLY.how = "answered"
        formats.try_bytes(name, content, folder)
        TALLY.note(f"{form.subject}: {name}, guided")
        tried += 1
        if tried % 100 == 0 or tried > options.runs - 100:
            (out / "tally.json").write_text(json.dumps(TALLY.ended), encoding="utf-8")

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        """Three of four times change what the file says, else its bytes."""
        draw = random.Random(seed)
        if draw.randrange(4):
            try:
                return changed_file(content, draw.choice)[:longest]
            except (ValueError, RecursionError):  # it says nothing any more
                pass
        return atheris.Mutate(content, longest)

    flags = [f"-runs={options.runs}", f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-len_control=0"]
    flags += [f"-max_len={LONGEST}", "-verbosity=0", "-rss_limit_mb=6144", f"-artifact_prefix={out}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], try_one, custom_mutator=mutate)
    atheris.Fuzz()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "moe-lab-guided"))
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", nargs=2, metavar=("FORMAT", "FILE"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
