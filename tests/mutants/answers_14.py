"""Answers to the exercises of lesson 14: right ones, and wrong ones that must be refused with a reason."""

import math

ARGUMENTS = {
    "14.2": "ours_ms, times_ms, printed",
    "14.3": "part, share, whole",
    "14.4": "claim, values, device, contradicted",
    "14.5": "rows, peak_flops, bytes_per_s",
}
METRICS = {
    "A": "time of an operation",
    "B": "time of a layer",
    "C": "training steps",
    "D": "training time",
    "E": "throughput",
    "F": "FLOPs",
    "G": "parameters",
    "H": "balance",
    "I": "none",
}


def fitting(*, ratio=lambda ms, ours: ms / ours, digits=lambda text: len(text.partition(".")[2]), ordered=sorted):
    """The baselines behind a ratio, with each part to replace."""

    def answer(ours_ms, times_ms, printed):
        number = printed[:-1]
        many = digits(number)
        return ordered(n for n, ms in times_ms.items() if round(ratio(ms, ours_ms), many) == float(number))

    return answer


def amdahl(part, share, whole):
    if [part, share, whole].count(None) != 1:
        return part, share, whole
    if whole is None:
        return part, share, 1 / (1 - share + share / part)
    if share is None:
        found = math.nan if part == 1 else (1 - 1 / whole) / (1 - 1 / part)
        return part, found if 0 <= found <= 1 else None, whole
    left = share - 1 + 1 / whole
    return share / left if share > 0 and left > 1e-12 else None, share, whole


def verdict(
    *,
    comparable=lambda claim: claim["metric"] and claim["baseline"],
    contradiction=lambda contradicted: contradicted,
    within=lambda claim, value: (
        (claim["low"] is None or value >= claim["low"]) and (claim["high"] is None or value <= claim["high"])
    ),
    home=lambda claim, device: not claim["devices"] or any(name in device for name in claim["devices"]),
    missing="not measured yet",
    away="not measured yet",
    some=any,
    every=all,
):
    """The rule, with each of its lines to replace."""

    def answer(claim, values, device, contradicted):
        if not comparable(claim):
            return "not a comparable quantity"
        if contradiction(contradicted):
            return "not reproducible"
        if values is None:
            return missing
        met, at_home = [within(claim, value) for value in values.values()], home(claim, device)
        if not some(met):
            return "not reproducible" if at_home else away
        return "holds" if every(met) and at_home else "holds under conditions"

    return answer


def above(*, floor=max, unit=1e3, strict=lambda ms, least: ms < least * (1 - 1e-9), ordered=list):
    """Rows that are too fast, with each part to replace."""

    def answer(rows, peak_flops, bytes_per_s):
        found = []
        for row in rows:
            least = unit * floor(row["flops"] / peak_flops, row["bytes"] / bytes_per_s)
            found += [row["name"]] if strict(row["ms"], least) else []
        return ordered(found)

    return answer


RIGHT = {"14.1": METRICS, "14.2": fitting(), "14.3": amdahl, "14.4": verdict(), "14.5": above()}


# ---------------------------------------------------------------- the same answers, differently written


def fitting_by_bounds(ours_ms, times_ms, printed):
    """Between half a unit of the last digit below, and half a unit above."""
    value = float(printed.rstrip("x"))
    half = 0.5 * 10 ** -len(printed.rstrip("x").partition(".")[2])
    return tuple(name for name in sorted(times_ms) if abs(times_ms[name] / ours_ms - value) < half)


def amdahl_of_100(part, share, whole):
    """In milliseconds of a task that took 100."""
    if (part is None) + (share is None) + (whole is None) != 1:
        return [part, share, whole]
    if whole is None:
        whole = 100 / (100 * (1 - share) + 100 * share / part)
    elif share is None:
        saved, saved_by_all = 100 - 100 / whole, 100 - 100 / part
        share = saved / saved_by_all if saved_by_all and 0 <= saved / saved_by_all <= 1 else None
    else:
        left = 100 / whole - 100 * (1 - share)
        part = 100 * share / left if left > 1e-9 and share else None
    return [part, share, whole]


def verdict_by_count(claim, values, device, contradicted):
    if "" in (claim["metric"], claim["baseline"]):
        return "not a comparable quantity"
    if contradicted or values is None:
        return "not reproducible" if contradicted else "not measured yet"
    low = -math.inf if claim["low"] is None else claim["low"]
    high = math.inf if claim["high"] is None else claim["high"]
    met = sum(low <= value <= high for value in values.values())
    elsewhere = bool(claim["devices"]) and not [name for name in claim["devices"] if name in device]
    return {
        (True, False): "not reproducible",
        (True, True): "not measured yet",
        (False, False): "holds" if met == len(values) else "holds under conditions",
        (False, True): "holds under conditions",
    }[met == 0, elsewhere]


def above_by_rates(rows, peak_flops, bytes_per_s):
    """Compares rates, not times."""
    return [
        row["name"]
        for row in rows
        if row["flops"] / row["ms"] > peak_flops / 1e3 * (1 + 1e-9)
        or row["bytes"] / row["ms"] > bytes_per_s / 1e3 * (1 + 1e-9)
    ]


ALSO_RIGHT = {
    "14.1": dict(reversed(METRICS.items())),
    "14.2": fitting_by_bounds,
    "14.3": amdahl_of_100,
    "14.4": verdict_by_count,
    "14.5": above_by_rates,
}


# ---------------------------------------------------------------- wrong answers


WRONG = {
    "14.1": {
        "speed is speed": METRICS | {"A": "time of a layer", "D": "throughput", "E": "training time"},
        "a layer is an operation": METRICS | {"B": "time of an operation"},
        "steps are time": METRICS | {"C": "training time", "D": "training steps"},
        "efficiency is time": METRICS | {"F": "time of a layer"},
        "parameters are FLOPs": METRICS | {"G": "FLOPs", "F": "parameters"},
        "balance is quality": METRICS | {"H": "none", "I": "balance"},
        "everything is a speedup": dict.fromkeys(METRICS, "throughput"),
        "words of one's own": METRICS | {"I": "quality"},
        "half an answer": {"A": "time of an operation", "B": "time of a layer"},
        "a list": list(METRICS.values()),
        "nothing": {},
    },
    "14.2": {
        "upside down": fitting(ratio=lambda ms, ours: ours / ms),
        "always one digit": fitting(digits=lambda text: 1),
        "always two digits": fitting(digits=lambda text: 2),
        "always whole": fitting(digits=lambda text: 0),
        "a digit too many": fitting(digits=lambda text: len(text.partition(".")[2]) + 1),
        "the point counted": lambda ours, times, printed: [
            name for name in sorted(times) if f"{times[name] / ours:.{len(printed)}g}x" == printed
        ],
        "as they come": fitting(ordered=list),
        "the first": lambda *given: fitting()(*given)[:1],
        "the nearest": lambda ours, times, printed: [
            min(times, key=lambda name: abs(times[name] / ours - float(printed[:-1])))
        ],
        "at least": lambda ours, times, printed: sorted(
            name for name in times if times[name] / ours >= float(printed[:-1])
        ),
        "our time is 2 ms": lambda ours, times, printed: fitting()(2.0, times, printed),
        "only faster ones": lambda ours, times, printed: [
            name for name in fitting()(ours, times, printed) if times[name] > ours
        ],
        "a name": lambda *given: (fitting()(*given) or [None])[0],
        "none": lambda *given: [],
        "the slowest": lambda ours, times, printed: [max(times, key=times.get)],
    },
    "14.3": {
        "the part is the whole": lambda p, s, w: (p, s, p if w is None and p and s is not None else w),
        "part times share": lambda p, s, w: amdahl(p, s, w) if w is not None or None in (p, s) else (p, s, p * s),
        "shares of one": lambda p, s, w: (
            amdahl(p, s, w) if w is not None or None in (p, s) else (p, s, 1 + s * (p - 1))
        ),
        "the rest forgotten": lambda p, s, w: amdahl(p, s, w) if w is not None or None in (p, s) else (p, s, p / s),
        "only the whole": lambda p, s, w: (p, s, 1 / (1 - s + s / p) if w is None and None not in (p, s) else w),
        "any share": lambda p, s, w: (
            amdahl(p, s, w) if s is not None or None in (p, w) or p == 1 else (p, (1 - 1 / w) / (1 - 1 / p), w)
        ),
        "shares clipped": lambda p, s, w: (
            amdahl(p, s, w)
            if s is not None or None in (p, w) or p == 1
            else (p, min(1.0, max(0.0, (1 - 1 / w) / (1 - 1 / p))), w)
        ),
        "divides by nothing": lambda p, s, w: (
            (p, (1 - 1 / w) / (1 - 1 / p), w) if s is None and None not in (p, w) else amdahl(p, s, w)
        ),
        "a negative speed": lambda p, s, w: (
            amdahl(p, s, w) if p is not None or None in (s, w) or s == 0 else (s / (1 / w - 1 + s), s, w)
        ),
        "infinitely fast": lambda p, s, w: (
            (math.inf, s, w) if p is None and None not in (s, w) and amdahl(p, s, w)[0] is None else amdahl(p, s, w)
        ),
        "one is one": lambda p, s, w: (p, 0.0, w) if (p, s) == (1, None) else amdahl(p, s, w),
        "nothing is nothing": lambda p, s, w: (0.0, s, w) if (p, s) == (None, 0) else amdahl(p, s, w),
        "one number": lambda p, s, w: amdahl(p, s, w)[2],
        "half where nothing is known": lambda p, s, w: amdahl(p, 0.5 if s is None and None in (p, w) else s, w),
        "never known": lambda p, s, w: (None, None, None),
        "parts are never slower": lambda p, s, w: amdahl(max(p, 1) if p is not None else None, s, w),
    },
    "14.4": {
        "no look at the baseline": verdict(comparable=lambda claim: claim["metric"]),
        "no look at the metric": verdict(comparable=lambda claim: claim["baseline"]),
        "everything can be compared": verdict(comparable=lambda claim: True),
        "no look at its own figures": verdict(contradiction=lambda contradicted: False),
        "a measurement heals a contradiction": lambda claim, values, device, contradicted: verdict()(
            claim, values, device, contradicted and values is None
        ),
        "what is missing is refuted": verdict(missing="not reproducible"),
        "what is missing holds": verdict(missing="holds"),
        "another machine refutes": verdict(away="not reproducible"),
        "any machine will do": verdict(home=lambda claim, device: True),
        "no hardware, no home": verdict(home=lambda claim, device: any(name in device for name in claim["devices"])),
        "the first device only": verdict(
            home=lambda claim, device: not claim["devices"] or claim["devices"][0] in device
        ),
        "the device's whole name": verdict(
            home=lambda claim, device: not claim["devices"] or device in claim["devices"]
        ),
        "one case is enough": verdict(every=any),
        "all cases or none": verdict(some=all),
        "no upper end": verdict(within=lambda claim, value: claim["low"] is None or value >= claim["low"]),
        "no lower end": verdict(within=lambda claim, value: claim["high"] is None or value <= claim["high"]),
        "above, not at": verdict(
            within=lambda claim, value: (
                (claim["low"] is None or value > claim["low"]) and (claim["high"] is None or value <= claim["high"])
            )
        ),
        "always the best": lambda *given: "holds",
        "always careful": lambda *given: "holds under conditions",
        "a truth value": lambda *given: verdict()(*given) == "holds",
    },
    "14.5": {
        "only the memory": above(floor=lambda arithmetic, moved: moved),
        "only the arithmetic": above(floor=lambda arithmetic, moved: arithmetic),
        "the sum of both": above(floor=lambda arithmetic, moved: arithmetic + moved),
        "the shorter of both": above(floor=min),
        "seconds for milliseconds": above(unit=1),
        "microseconds": above(unit=1e6),
        "at the floor, too": above(strict=lambda ms, least: ms <= least * (1 + 1e-9)),
        "slower ones": above(strict=lambda ms, least: ms > least),
        "in alphabetical order": above(ordered=sorted),
        "backwards": above(ordered=lambda names: names[::-1]),
        "how many": above(ordered=len),
        "the first": above(ordered=lambda names: names[:1]),
        "whole rows": lambda rows, peak, rate: [row for row in rows if row["name"] in above()(rows, peak, rate)],
        "nothing is impossible": lambda *given: [],
        "everything is": lambda rows, *_: [row["name"] for row in rows],
    },
}

HINT_NAMES = {}
