"""Passages of held-out files of the standard library, for a widget to read."""

import ast
import functools
import statistics
import sysconfig
import warnings
from pathlib import Path

from moe_lab.corpus import VALIDATION_EVERY, python_files

FEWEST_BYTES, MOST_BYTES = 512, 1024


@functools.lru_cache(maxsize=1)
def held_out_passages() -> dict[str, str]:
    """Four passages of held-out files of the standard library, each the most extreme of its kind.

    A passage is as many whole statements as fit in 1,024 bytes, at least 512 bytes, in ASCII. The kinds: most often
    " the " (prose), most digits, most white space (nested), and nearest to the median of letters, digits and spaces.
    Another version of Python has other passages.
    """
    passages = [passage for name, path in held_out_files().items() for passage in passages_of(name, path)]
    shares = [
        [sum(map(kind, text)) / len(text) for kind in (str.isalpha, str.isdigit, str.isspace)] for _, text in passages
    ]
    middle = [statistics.median(column) for column in zip(*shares, strict=True)]
    scores = {
        "prose": [text.count(" the ") / len(text) for _, text in passages],
        "numbers": [digits for _, digits, _ in shares],
        "nested": [spaces for _, _, spaces in shares],
        "ordinary": [-sum((a - b) ** 2 for a, b in zip(share, middle, strict=True)) for share in shares],
    }
    best = {kind: passages[score.index(max(score))] for kind, score in scores.items()}
    return {f"{kind}, of {file}": text for kind, (file, text) in best.items()}


def held_out_files(folder: str | None = None) -> dict[str, Path]:
    """The files that `standard_library` holds out, by their paths in it."""
    root = Path(folder or sysconfig.get_path("stdlib"))
    found = [path for path in python_files(root) if path.stat().st_size]
    return {path.relative_to(root).as_posix(): path for path in found[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]}


def passages_of(name: str, path: Path) -> list[tuple[str, str]]:
    """The name with every run of a file's whole statements that is long enough and not too long.

    None of a file that this Python cannot parse.
    """
    text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
    if not text.isascii():
        return []
    lines = text.split("\n")
    start = [0]
    for line in lines:
        start.append(start[-1] + len(line) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            body = ast.parse(text).body
        except SyntaxError:
            return []
    first = [min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1 for node in body]
    ends = [start[node.end_lineno] for node in body]
    runs = [
        (start[line], max((end for end in ends[at:] if end - start[line] <= MOST_BYTES), default=0))
        for at, line in enumerate(first)
    ]
    return [(name, text[low:high]) for low, high in runs if high - low >= FEWEST_BYTES]
