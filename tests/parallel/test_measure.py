"""Measured exchanges and the fit: made-up times give their numbers back, real ranks receive what was sent to them."""

import sys

import pytest
import torch

from moe_lab.bench.exchange import compare_exchanges, read_exchange, recorded_exchange
from moe_lab.bench.reading import Record
from moe_lab.bench.rows import Measured
from moe_lab.parallel.clusters import Bus, Cluster
from moe_lab.parallel.measure import (
    FITTED,
    HELD_OUT,
    MeasuredExchange,
    Pattern,
    calibrate,
    hold_against,
    measure_exchanges,
    routed,
    uniform,
)
from moe_lab.parallel.messages import message
from moe_lab.parallel.simulator import exchange_time
from moe_lab.profiling import Timing

BUS = Bus(start_us=200.0, message_us=30.0, carried_gigabytes_per_s=1.5, kept_gigabytes_per_s=6.0)
MADE_UP = Cluster("made up", 64, 64, None, None, None, "toy", BUS)
SEEN = [make(ranks, size) for make in FITTED for ranks in (2, 4) for size in (2**10, 2**17, 2**24)]
UNSEEN = [make(ranks, size) for make in HELD_OUT for ranks in (2, 3, 8) for size in (2**12, 2**22)]


def took(pattern, ms):
    """An exchange whose undisturbed time is ``ms``; a median is of other calls."""
    return MeasuredExchange(pattern, Timing(ms, 1.5 * ms, 3 * ms, 1), 0)


def pretend(patterns, cluster=MADE_UP, noise=0.0):
    generator = torch.Generator().manual_seed(0)
    times = [exchange_time(pattern.bytes_sent, cluster).ms for pattern in patterns]
    times = [ms * (1 + noise * float(torch.randn((), generator=generator))) for ms in times]
    return [took(p, ms) for p, ms in zip(patterns, times, strict=True)]


def test_the_fit_gives_made_up_numbers_back():
    found = calibrate(pretend(SEEN)).bus
    for name in ("start_us", "message_us", "carried_gigabytes_per_s", "kept_gigabytes_per_s"):
        assert getattr(found, name) == pytest.approx(getattr(BUS, name), rel=1e-6), name


def test_the_fit_predicts_what_it_has_not_seen():
    cluster = calibrate(pretend(SEEN))
    for held in hold_against(pretend(UNSEEN), cluster):
        assert held.error == pytest.approx(0, abs=1e-6)
    noisy = calibrate(pretend(SEEN, noise=0.1))
    errors = [abs(held.error) for held in hold_against(pretend(UNSEEN), noisy)]
    assert 0.001 < max(errors) < 0.25


def test_small_and_large_messages_count_alike():
    """Squared errors in milliseconds would be those of the largest message alone."""
    measured = pretend(SEEN)
    late = max(range(len(SEEN)), key=lambda place: SEEN[place].carried_bytes)
    measured[late] = took(SEEN[late], 1.2 * measured[late].ms())
    assert calibrate(measured).bus.start_us == pytest.approx(BUS.start_us, rel=0.3)


def test_no_number_of_the_fit_is_below_0():
    times = [0.1 if pattern.ranks == 4 else 0.2 for pattern in SEEN]  # more messages in less time
    made = [took(p, ms) for p, ms in zip(SEEN, times, strict=True)]
    assert calibrate(made).bus.message_us == 0


def test_patterns_send_what_they_say():
    for make in (*FITTED, *HELD_OUT):
        for ranks in (2, 3, 4):
            pattern = make(ranks, 12 * 2**12)
            sent = pattern.bytes_sent
            assert sent.shape == (ranks, ranks)
            assert pattern.kept_bytes + pattern.carried_bytes == int(sent.sum())
            assert pattern.kept_bytes == int(sent.diagonal().sum())
            if make is not routed:
                assert set(sent.sum(dim=1).tolist()) <= {12 * 2**12, 0}
    assert routed(4, 2**14, seed=1) != routed(4, 2**14, seed=2)


@pytest.fixture(scope="module")
def measured():
    patterns = [make(3, 3000) for make in (*FITTED, *HELD_OUT)] + [uniform(2, 0), uniform(2, 64)]
    return patterns, measure_exchanges(patterns, repeats=2)


def test_real_ranks_receive_what_was_sent(measured):
    patterns, found = measured
    assert [one.pattern for one in found] == patterns  # in the order that was asked for
    assert all(one.wrong_bytes == 0 and one.timing.repeats == 2 for one in found)
    assert all(0 < one.timing.p20_ms <= one.timing.p50_ms <= one.timing.p80_ms for one in found)


def test_a_message_tells_sender_receiver_and_order():
    said = [message(sender, receiver, 8).tolist() for sender in range(5) for receiver in range(4)]
    assert len(set(map(tuple, said))) == len(said)
    assert len(set(said[0])) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure_exchanges([]), "patterns must hold at least one"),
        (lambda: measure_exchanges([uniform(2, 8)], repeats=0), "repeats must be at least 1"),
        (lambda: calibrate(pretend(SEEN[:3])), "measured must hold at least four exchanges"),
        (lambda: Pattern("toy", ((1, 2), (3,))), r"rows must be \(ranks, ranks\), got \[2, 1\]"),
        (lambda: Pattern("toy", ((1, -2), (3, 4))), "rows must be at least 0, got -2"),
        (lambda: took(uniform(2, 8), 1.0).ms(90), "percentile must be 20, 50 or 80, got 90"),
        (lambda: Pattern("toy", ()), "ranks must be in 1..64, got 0"),
    ],
)
def test_refuses_what_cannot_be_measured(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_record_is_read_as_it_was_measured(monkeypatch, tmp_path):
    suite = sys.modules[compare_exchanges.__module__]  # its name in the package is the suite's function
    monkeypatch.setattr(suite, "measure_exchanges", lambda patterns, repeats: pretend(patterns, noise=0.1))
    rows = [Measured.from_dict(row.as_dict()) for row in compare_exchanges(SEEN, UNSEEN, repeats=1)]
    read = read_exchange(Record({"device": "toy"}, rows))
    assert [one.pattern for one in read.fitted] == SEEN and [one.pattern for one in read.held_out] == UNSEEN
    for one, row in zip([*read.fitted, *read.held_out], rows, strict=True):
        assert one.measured_ms == row.ms_p20 and one.predicted_ms == pytest.approx(row.shape["predicted_ms"], abs=1e-6)
    medians = read_exchange(Record({"device": "toy"}, rows), percentile=50)
    assert [one.measured_ms for one in medians.fitted] == [row.ms_p50 for row in rows[: len(SEEN)]]
    assert medians.cluster.bus.message_us == pytest.approx(1.5 * read.cluster.bus.message_us)
    inside, count = read.within(0.25)
    assert 0 < inside <= count == len(UNSEEN) and read.within(0.0)[0] == 0
    assert recorded_exchange(tmp_path) is None


def test_refuses_a_record_of_something_else():
    rows = [Measured("gloo, uniform", "forward", {"held_out": 0}, "uint8", ms_p50=1.0)]
    with pytest.raises(ValueError, match="the record must be of the suite exchange"):
        read_exchange(Record({"device": "toy"}, rows))
