"""Answers to the exercises of lesson 10: right ones, and wrong ones that must be refused with a reason."""

import itertools
import math
from fractions import Fraction

ARGUMENTS = {
    "10.1": "steps, examples, seconds",
    "10.2": "d_ff, num_experts, top_k, num_shared, gated",
    "10.3": "dense, moe, dense_ms, moe_ms",
    "10.4": "dense, moe",
    "10.5": "config",
}


def complete(steps, examples, seconds):
    if [steps, examples, seconds].count(None) != 1:
        return steps, examples, seconds
    if seconds is None:
        return steps, examples, steps * examples
    if examples is None:
        return steps, seconds / steps, seconds
    return seconds / examples, examples, seconds


def width(d_ff, num_experts, top_k, num_shared, gated):
    matrices = 3 if gated else 2
    return max(0, (matrices * d_ff - num_experts) // (matrices * (top_k + num_shared)))


def between(short, worse, long, better, loss):
    """Steps at which a straight line over log(steps) has the loss."""
    return short * math.exp((worse - loss) / (worse - better) * math.log(long / short))


def between_in_steps(short, worse, long, better, loss):
    return short + (worse - loss) / (worse - better) * (long - short)


def reading(*, ordered=sorted, line=between, outside=None, times=lambda dense_ms, moe_ms: dense_ms / moe_ms):
    """Three ratios from whole runs, with each of their parts to replace; ``outside`` takes the place of None."""

    def answer(dense, moe, dense_ms, moe_ms):
        runs, (steps, loss) = ordered(moe), dense
        needed = runs[0][0] if runs[0][1] == loss else None
        for (short, worse), (long, better) in itertools.pairwise(runs):
            if needed is None and better <= loss < worse:
                needed = line(short, worse, long, better, loss)
        if needed is None and outside is not None:
            needed = outside(runs, loss)
        ratio, examples = needed and steps / needed, times(dense_ms, moe_ms)
        return ratio, examples, ratio and ratio * examples

    return answer


def is_cut(arm, end=0.2):
    return arm["read_at"] != len(arm["rates"]) or arm["rates"][-1] > end * max(arm["rates"])


def is_untuned(arm, edges=True):
    best = min(arm["tried"], key=arm["tried"].get)
    at_an_edge = best in (min(arm["tried"]), max(arm["tried"]))
    return (edges and at_an_edge) or not math.isclose(max(arm["rates"]), best, rel_tol=1e-6)


def referee(*, flops=0.01, cut=is_cut, untuned=is_untuned, data=True, arms=("dense", "moe")):
    """The faults of a race, with each rule to replace."""

    def answer(dense, moe):
        judged = [{"dense": dense, "moe": moe}[name] for name in arms]
        found = {
            "FLOPs": abs(moe["flops"] / dense["flops"] - 1) > flops,
            "data": data and dense["data"] != moe["data"],
            "schedule": any(map(cut, judged)),
            "tuning": any(map(untuned, judged)),
        }
        return [name for name, is_so in found.items() if is_so]

    return answer


def counting(
    *,
    router=1,
    router_bias=0,
    mixing=lambda h: 2 * h + 2,
    beside=1,
    biases=1,
    norms=4,
    last_norm=2,
    positions=1,
    output=0,
    dense=1,
    experts=lambda count: count,
):
    """Parameters of a PR-MoE, with each of its parts to leave out."""

    def answer(config):
        h, f = config["hidden_size"], config["intermediate_size"]
        network = 2 * h * f + biases * (f + h)
        total = (1 + output) * config["vocab_size"] * h + positions * config["max_position_embeddings"] * h
        total += last_norm * h
        for count in config["num_experts"]:
            total += 4 * h * h + 4 * h * biases + norms * h
            total += experts(count) * network + router * count * h + router_bias * count
            total += dense * network * (count == 0)
            if count and config["residual"]:
                total += beside * network + mixing(h)
        return total

    return answer


RIGHT = {"10.1": complete, "10.2": width, "10.3": reading(), "10.4": referee(), "10.5": counting()}


# ---------------------------------------------------------------- the same answers, differently written


def complete_by_logarithms(*known):
    """The logarithms of steps and examples add up to that of seconds."""
    if sum(ratio is None for ratio in known) != 1:
        return list(known)
    logs = [ratio and math.log(ratio) for ratio in known]
    logs = [0.0 if ratio == 1 else log for ratio, log in zip(known, logs, strict=True)]
    steps, examples, seconds = logs
    missing = {2: lambda: steps + examples, 1: lambda: seconds - steps, 0: lambda: seconds - examples}
    at = known.index(None)
    return [math.exp(missing[at]()) if place == at else ratio for place, ratio in enumerate(known)]


def width_by_trying(d_ff, num_experts, top_k, num_shared, gated):
    """Count a token in layers that are ever wider, until it costs more."""
    matrices, found = 3 if gated else 2, 0
    while num_experts + matrices * (found + 1) * (top_k + num_shared) <= matrices * d_ff:
        found += 1
    return found


def reading_by_logarithms(dense, moe, dense_ms, moe_ms):
    """Equality with any run first, then the pair of neighbours around the loss."""
    steps, loss = dense
    examples = 1 / (moe_ms / dense_ms)
    below = [run for run in sorted(moe) if run[1] <= loss]
    above = [run for run in sorted(moe) if run[1] > loss and (not below or run[0] < below[0][0])]
    if not below or (not above and below[0][1] != loss):
        return None, examples, None
    if below[0][1] == loss:
        needed = below[0][0]
    else:
        (short, worse), (long, better) = above[-1], below[0]
        needed = short ** ((loss - better) / (worse - better)) * long ** ((worse - loss) / (worse - better))
    return steps / needed, examples, steps / needed * examples


def referee_one_by_one(dense, moe):
    found = []
    if not 0.99 <= moe["flops"] / dense["flops"] <= 1.01:
        found.append("FLOPs")
    if moe["data"] != dense["data"]:
        found.append("data")
    if not all(
        arm["read_at"] == len(arm["rates"]) and 5 * arm["rates"][-1] <= max(arm["rates"]) for arm in (dense, moe)
    ):
        found.append("schedule")
    for arm in (dense, moe):
        tried = sorted(arm["tried"].items())
        losses = [loss for _, loss in tried]
        inner = losses.index(min(losses)) not in (0, len(losses) - 1)
        if not inner or abs(tried[losses.index(min(losses))][0] - max(arm["rates"])) > 1e-9:
            found.append("tuning")
            break
    return tuple(found)


def counting_by_parts(config):
    """Shapes first, then their products."""
    h, f = config["hidden_size"], config["intermediate_size"]
    network = [(h, f), (f,), (f, h), (h,)]
    shapes = [(config["vocab_size"], h), (config["max_position_embeddings"], h), (h,), (h,)]
    for experts in config["num_experts"]:
        shapes += [(h, 3 * h), (3 * h,), (h, h), (h,), (h,), (h,), (h,), (h,)]
        networks = experts + bool(config["residual"]) if experts else 1
        shapes += network * networks
        shapes += [(experts, h)] if experts else []
        shapes += [(h, 2), (2,)] if experts and config["residual"] else []
    return sum(math.prod(shape) for shape in shapes)


ALSO_RIGHT = {
    "10.1": complete_by_logarithms,
    "10.2": width_by_trying,
    "10.3": reading_by_logarithms,
    "10.4": referee_one_by_one,
    "10.5": counting_by_parts,
}


# ---------------------------------------------------------------- wrong answers


def widths(*, dense=lambda m, f: m * f, router=1, chosen=lambda k, s: k + s, whole=math.floor, matrices=None):
    """A width with each of its parts to replace."""

    def answer(d_ff, num_experts, top_k, num_shared, gated):
        m = matrices or (3 if gated else 2)
        return max(0, whole(Fraction(dense(m, d_ff) - router * num_experts, m * chosen(top_k, num_shared))))

    return answer


WRONG = {
    "10.1": {
        "the sum": lambda *k: complete(*k) if k[2] is not None or None in k[:2] else (k[0], k[1], k[0] + k[1]),
        "steps over examples": lambda *k: complete(*k) if k[2] is not None or None in k[:2] else (*k[:2], k[0] / k[1]),
        "seconds are steps": lambda steps, examples, seconds: (steps, examples, steps if seconds is None else seconds),
        "only the product": lambda s, e, t: (s, e, s * e if t is None and s and e else t),
        "upside down": lambda s, e, t: complete(s, e, t) if e is not None or not s or not t else (s, s / t, t),
        "always one": lambda s, e, t: (s or 1, e or 1, t or 1),
        "one for what is missing twice": lambda s, e, t: complete(s, e if (e, t) != (None, None) else 1, t),
        "never known": lambda s, e, t: (None, None, None),
        "only seconds": lambda s, e, t: complete(s, e, t)[2],
        "Switch for all": lambda s, e, t: (7.5, 0.625, 4.6875),
        "zeros": lambda s, e, t: (s or 0, e or 0, t or 0),
        "steps times seconds": lambda s, e, t: complete(s, e, t) if s is not None or not e or not t else (e * t, e, t),
    },
    "10.2": {
        "no router": widths(router=0),
        "the router twice": widths(router=2),
        "only the chosen": widths(chosen=lambda k, s: k),
        "all experts of equal cost": lambda d_ff, num_experts, *_: d_ff // num_experts,
        "rounded up": widths(whole=math.ceil),
        "rounded": widths(whole=round),
        "always three matrices": widths(matrices=3),
        "always two matrices": widths(matrices=2),
        "below zero": lambda d_ff, e, k, s, gated: ((3 if gated else 2) * d_ff - e) // ((3 if gated else 2) * (k + s)),
        "at least one": lambda *given: max(1, width(*given)),
        "the dense width": lambda d_ff, *_: d_ff,
        "top_k ignored": widths(chosen=lambda k, s: 1 + s),
        "the router in numbers of d_ff": widths(dense=lambda m, f: f),
        "a column less": lambda *given: max(0, width(*given) - 1),
        "a float": lambda f, e, k, s, gated: max(0.0, f - e / 3) / (k + s) if gated else f - e / 2,
    },
    "10.3": {
        "straight in steps": reading(line=between_in_steps),
        "as they come": reading(ordered=list),
        "the longer neighbour": reading(line=lambda short, worse, long, better, loss: long),
        "the shorter neighbour": reading(line=lambda short, worse, long, better, loss: short),
        "first and last run": reading(ordered=lambda moe: [sorted(moe)[0], sorted(moe)[-1]]),
        "a bound for the ratio": reading(outside=lambda runs, loss: runs[-1][0] if runs[-1][1] > loss else runs[0][0]),
        "times upside down": reading(times=lambda dense_ms, moe_ms: moe_ms / dense_ms),
        "times ignored": reading(times=lambda dense_ms, moe_ms: 1.0),
        "steps only": lambda *given: reading()(*given)[0],
        "the mean of the neighbours": reading(line=lambda short, worse, long, better, loss: (short * long) ** 0.5),
        "the nearest run": reading(
            line=lambda short, worse, long, better, loss: short if worse - loss < loss - better else long,
            outside=lambda runs, loss: min(runs, key=lambda run: abs(run[1] - loss))[0],
        ),
        "seconds are steps": lambda *given: (*reading()(*given)[:2], reading()(*given)[0]),
        "the MoE's longest": lambda dense, moe, a, b: (dense[0] / max(moe)[0], a / b, dense[0] / max(moe)[0] * a / b),
        "never": lambda dense, moe, a, b: (None, a / b, None),
        "infinite where none is good enough": reading(outside=lambda runs, loss: math.inf),
        "one run is no pair": lambda *given: (None, 1.2, None) if len(given[1]) == 1 else reading()(*given),
        "the mean, and of one run nothing": lambda *given: (
            (None, 1.2, None)
            if len(given[1]) == 1
            else reading(line=lambda short, worse, long, better, loss: (short + long) / 2)(*given)
        ),
        "an equal loss is not reached": lambda dense, moe, a, b: reading()((dense[0], dense[1] - 1e-3), moe, a, b),
    },
    "10.4": {
        "all is fair": lambda dense, moe: [],
        "all is unfair": lambda dense, moe: ["FLOPs", "data", "schedule", "tuning"],
        "no look at the FLOPs": referee(flops=math.inf),
        "FLOPs to the last one": referee(flops=0),
        "FLOPs within a tenth": referee(flops=0.1),
        "no look at the data": referee(data=False),
        "no look at the schedule": referee(cut=lambda arm: False),
        "read at the end, whatever the rate": referee(cut=lambda arm: arm["read_at"] != len(arm["rates"])),
        "any decay will do": referee(cut=lambda arm: is_cut(arm, end=0.99)),
        "only the last rate": referee(cut=lambda arm: arm["rates"][-1] > 0.2 * max(arm["rates"])),
        "the rate must end at zero": referee(cut=lambda arm: is_cut(arm, end=0.01)),
        "no look at the tuning": referee(untuned=lambda arm: False),
        "edges are fine": referee(untuned=lambda arm: is_untuned(arm, edges=False)),
        "one arm was never tuned": referee(untuned=lambda arm: len(arm["tried"]) < 2),
        "any best inside": referee(
            untuned=lambda arm: min(arm["tried"], key=arm["tried"].get) in (min(arm["tried"]), max(arm["tried"]))
        ),
        "only the dense arm": referee(arms=("dense",)),
        "only the MoE": referee(arms=("moe",)),
        "rates must be equal": lambda dense, moe: [
            *referee()(dense, moe),
            *(["tuning"] if max(dense["rates"]) != max(moe["rates"]) else []),
        ],
        "steps must be equal": lambda dense, moe: [
            *referee()(dense, moe),
            *(["schedule"] if len(dense["rates"]) != len(moe["rates"]) else []),
        ],
        "the first fault": lambda dense, moe: referee()(dense, moe)[:1],
        "how many": lambda dense, moe: len(referee()(dense, moe)),
        "in another order": lambda dense, moe: referee()(dense, moe)[::-1],
    },
    "10.5": {
        "no routers": counting(router=0),
        "routers with biases": counting(router_bias=1),
        "nothing that mixes": counting(mixing=lambda h: 0),
        "mixing without a bias": counting(mixing=lambda h: 2 * h),
        "no network beside the experts": counting(beside=0),
        "no biases": counting(biases=0),
        "norms without biases": counting(norms=2),
        "no last norm": counting(last_norm=0),
        "no positions": counting(positions=0),
        "an output of its own": counting(output=1),
        "no dense layers": counting(dense=0),
        "one expert a layer": counting(experts=lambda count: min(count, 1)),
        "the residual is one of them": counting(experts=lambda count: max(count - 1, 0)),
        "always residual": lambda config: counting()(config | {"residual": True}),
        "never residual": lambda config: counting()(config | {"residual": False}),
        "the same experts in every layer": lambda config: counting()(
            config | {"num_experts": [max(config["num_experts"])] * len(config["num_experts"])}
        ),
        "every second layer": lambda config: counting()(
            config | {"num_experts": [0, max(config["num_experts"])] * (len(config["num_experts"]) // 2)}
        ),
    },
}

HINT_NAMES = {}
