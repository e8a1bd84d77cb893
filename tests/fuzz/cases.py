"""What a case is: one input, tried once, in a subject; how it ended; and how many are tried.

`fuzzed` makes a test of a function and of strategies for its arguments, and counts. `attempt` calls what is tried, and
lets nothing through but an answer, or an error that `DOCUMENTED` has.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

DOCUMENTED: dict[str, tuple[type[Exception], ...]] = {
    "routing": (ValueError, TypeError),
    "layers": (ValueError, TypeError),
    "kernels": (ValueError, TypeError),
    "counters": (ValueError, TypeError),
    "records": (ValueError, FileNotFoundError),
    "configs": (ValueError, TypeError),
    "checkpoints": (ValueError, FileNotFoundError),
}
"""Subject -> the errors that its docstrings speak of: these classes themselves, or ours that are made from them."""

FULL = "fuzz"
"""The hypothesis profile of `make fuzz`; under any other one a test tries a few cases, always the same."""
settings.register_profile(
    FULL, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck), derandomize=False
)
SLICE = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
SEED = int(os.environ.get("FUZZ_SEED", "0"))


class Tally:
    """How many cases of each subject ended in which way: "answered", or the name of a documented error."""

    def __init__(self):
        self.ended: dict[str, Counter] = {}
        self.how = "answered"

    def note(self, subject: str) -> None:
        self.ended.setdefault(subject, Counter())[self.how] += 1

    def add(self, ended: dict[str, dict[str, int]]) -> None:
        for subject, ways in ended.items():
            self.ended.setdefault(subject, Counter()).update(ways)

    @property
    def cases(self) -> int:
        return sum(sum(ways.values()) for ways in self.ended.values())

    def describe(self) -> str:
        lines = [f"  {'subject':28} {'cases':>8}   ended in"]
        for subject, ways in sorted(self.ended.items()):
            said = ", ".join(f"{how} {count:,}" for how, count in ways.most_common())
            lines.append(f"  {subject:28} {sum(ways.values()):8,}   {said}")
        return "\n".join([*lines, f"  {'all':28} {self.cases:8,}"])


TALLY = Tally()


def attempt(subject: str, call: Callable[[], object], *, refuses: str | None = None, must: str = "either"):
    """What ``call()`` gives, or None where it refuses; whatever else comes out of it is a failure.

    ``must`` is "answer" where the input is right and "refuse" where it is wrong; ``refuses`` is a word that the
    refusal has to have, such as the name of the argument that is wrong.
    """
    try:
        value = call()
    except Exception as error:
        kind = type(error)
        ours = kind.__module__.startswith("moe_lab.") and issubclass(kind, DOCUMENTED[subject])
        if not ours and kind not in DOCUMENTED[subject]:
            raise
        assert must != "answer", f"what is right was refused: {error}"
        assert refuses is None or refuses in str(error), f"the refusal does not say {refuses!r}: {error}"
        TALLY.how = kind.__name__
        return None
    assert must != "refuse", f"what is wrong was taken ({refuses})"
    return value


@st.composite
def one_wrong(draw, values: dict[str, tuple]) -> tuple[str, int]:
    """The name of an argument, and the place of one of the values that it cannot have."""
    name = draw(st.sampled_from(sorted(values)))
    return name, draw(st.integers(0, len(values[name]) - 1))


def fuzzed(subject: str, cases: int, few: int, **strategies) -> Callable:
    """A test that tries ``cases`` draws of the arguments under `FULL`, from the seed `SEED`, and else ``few``."""

    def decorate(body: Callable) -> Callable:
        @functools.wraps(body)
        def test(**arguments):
            TALLY.how = "answered"
            body(**arguments)
            TALLY.note(subject)

        if settings.get_current_profile_name() != FULL:
            return settings(SLICE, max_examples=few)(given(**strategies)(test))
        return seed(SEED)(settings(settings.get_profile(FULL), max_examples=cases)(given(**strategies)(test)))

    return decorate
