"""Sums that chunks add to: the same whoever comes first, with little memory, and nobody waits for what never comes."""

import threading
import time

import pytest
import torch

from moe_lab import expert_mlp
from moe_lab.inputs import make_layer_inputs
from moe_lab.operators import chunks, workers
from moe_lab.operators.chunks import Plan
from moe_lab.operators.sums import TokenSum
from moe_lab.profiling.memory import measure_peak_bytes

from .dispatched import Dispatched

CPU = torch.device("cpu")


@pytest.fixture
def two_cores(monkeypatch):
    """Experts side by side on two cores, however little there is to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(workers, "LEAST_NUMBERS", 0)
    yield
    torch.set_num_threads(before)


def summed(plan, rows, token, weight, dtype=torch.float32, before=lambda chunk: None):
    """One token's sum of what all chunks bring, each after ``before``."""
    total = TokenSum(3, rows.shape[1], dtype, torch.float32, plan)

    def step(buffers, chunk):
        place = total.place(chunk)
        place.fill_(float("nan")).copy_(rows[chunk.rows])
        before(chunk)
        total.add(chunk, place, token[chunk.rows], weight[chunk.rows])

    plan.run(step, dtype)
    return total.total


def some_rows(count, columns=4):
    """Of so different sizes that their sum tells in which order they were added."""
    scale = 10.0 ** torch.arange(count).remainder(7)[:, None]
    return torch.randn(count, columns) * scale, torch.arange(count) % 3, torch.rand(count, 1)


@pytest.mark.parametrize("late", range(4))
def test_whoever_comes_first_the_sum_is_the_same(late, two_cores):
    load = [12, 12, 12, 12, 12, 12]
    given = some_rows(sum(load))
    plan = Plan(load, 1, CPU)
    assert plan.side_by_side and plan.places == 3
    want = torch.zeros(3, 4)
    for chunk in plan.chunks:
        rows, token, weight = (value[chunk.rows] for value in given)
        want.index_add_(0, token, rows * weight)
    arrived = []

    def before(chunk):
        time.sleep(0.5 * (chunk.turn == late))
        arrived.append(chunk.turn)

    assert torch.equal(summed(plan, *given, before=before), want)
    assert sorted(arrived) == list(range(6)) and arrived != sorted(arrived), "the late one was not late"


def test_the_order_does_not_depend_on_the_number_of_cores(two_cores, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 5)
    load = [7, 0, 12, 11, 9]
    given, plan = some_rows(sum(load)), Plan(load, 1, CPU)
    assert plan.side_by_side and [chunk.expert for chunk in plan.chunks] == [2, 2, 2, 3, 3, 3, 4, 4, 0, 0]
    on_two = summed(plan, *given)
    torch.set_num_threads(1)
    alone = Plan(load, 1, CPU)
    assert not alone.side_by_side and alone.places == 1 and alone.chunks == plan.chunks
    assert torch.equal(summed(alone, *given), on_two)


def taken(plan):
    """Expert, rows and hidden units of each chunk, in order."""
    return [(one.expert, one.rows.start, one.rows.stop, one.units.start, one.units.stop) for one in plan.chunks]


def test_the_last_two_experts_are_taken_half_by_half_if_they_are_large(monkeypatch):
    whole = taken(Plan([3, 4, 0, 5], 1, CPU))
    assert whole == [(3, 7, 12, 0, 1), (1, 3, 7, 0, 1), (0, 0, 3, 0, 1)], "one hidden unit has no halves"
    halves = [(1, 3, 7, 0, 64), (1, 3, 7, 64, 200), (0, 0, 3, 0, 64), (0, 0, 3, 64, 200)]
    assert taken(Plan([3, 4, 0, 5], 1, CPU, d_expert=200)) == [(3, 7, 12, 0, 200), *halves]
    assert len(taken(Plan([100, 100, 100, 9, 9], 1, CPU, d_expert=200))) == 5, "9 of 318 are few"
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    rows = [(3, 7, 10, 0, 200), (3, 10, 12, 0, 200), (1, 3, 5, 0, 200), (1, 5, 7, 0, 200)]
    apart = taken(Plan([3, 4, 0, 5], 1, CPU, d_expert=200, forward=torch.float32))
    assert apart == [*rows, *halves[2:]], "what is in several chunks anyway"
    back = taken(Plan([3, 4, 0, 5], 1, CPU, d_expert=200))
    assert back[2:6] == [(1, 3, 5, 0, 64), (1, 5, 7, 0, 64), (1, 3, 5, 64, 200), (1, 5, 7, 64, 200)]


def test_a_forward_pass_in_half_precision_takes_smaller_chunks_and_two_cores_share_an_expert(two_cores, monkeypatch):
    monkeypatch.setattr(chunks, "HALF_CHUNK_ROWS", 4)
    sizes = {
        dtype: [one.size for one in Plan([10], 1, CPU, forward=dtype).chunks]
        for dtype in (*chunks.HALF_PRECISIONS, None)
    }
    assert sizes == {torch.bfloat16: [4, 4, 2], torch.float16: [4, 4, 2], None: [10]}
    tasks = []
    monkeypatch.setattr(chunks, "run_side_by_side", lambda given, _: tasks.append(len(given)))
    for dtype in (torch.bfloat16, None):
        plan = Plan([8, 8, 8, 8], 1, CPU, d_expert=128, forward=dtype)
        assert plan.side_by_side
        plan.run(lambda *_: None, torch.bfloat16)
    assert tasks == [8, 6], "8 chunks; two experts and four halves"


def test_a_sum_is_rounded_the_same_by_one_core_and_by_all():
    total = TokenSum(700, 100, torch.bfloat16, torch.float32, Plan([], 1, CPU))
    total.total.normal_()
    want = total.total.to(torch.bfloat16)
    assert torch.equal(total.rounded(torch.bfloat16), want)
    assert torch.equal(total.rounded(torch.bfloat16, by_one_core=True), want)
    assert total.rounded(torch.float32) is total.total
    elsewhere = torch.device("meta")
    total = TokenSum(700, 100, torch.bfloat16, torch.float32, Plan([], 1, elsewhere))
    with Dispatched() as dispatched:
        assert total.rounded(torch.bfloat16, by_one_core=True).dtype == torch.bfloat16
    assert len(dispatched.calls) == 1, "on a GPU each piece would be a launch"


@pytest.mark.parametrize("failing", [0, 2, 5])
def test_an_error_reaches_the_caller_and_nobody_waits_for_its_turn(failing, two_cores):
    plan = Plan([4] * 12, 1, CPU)

    def before(chunk):
        if chunk.turn == failing:
            raise ZeroDivisionError(f"at turn {failing}")

    raised = []

    def call():
        try:
            summed(plan, *some_rows(48), before=before)
        except ZeroDivisionError as error:
            raised.append(str(error))

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(timeout=20)
    assert raised == [f"at turn {failing}"]
    assert summed(Plan([4] * 12, 1, CPU), *some_rows(48)).isfinite().all(), "the next one has its cores"


def test_rows_wait_in_no_more_places_than_there_are(two_cores):
    plan, most = Plan([4] * 10, 1, CPU), []

    def before(chunk):
        time.sleep(0.5 * (chunk.turn == 0))
        most.append(chunk.turn)

    summed(plan, *some_rows(40), before=before)
    assert most.index(0) == 2, "two are done before the late first one, and the third has no place"


def test_what_experts_answer_is_never_there_for_all_rows():
    """Beyond the result: a few chunks of rows. 8 slots a token would be 8 times the result."""
    inputs = make_layer_inputs(512, 64, 32, 16, 8)

    def forward():
        with torch.no_grad():
            return expert_mlp(*inputs.arguments, backend="grouped")

    result = forward().numel() * 4
    assert result <= measure_peak_bytes(forward) < 5 * result
