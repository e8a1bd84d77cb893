"""Exercises of lesson 13: of each patient a property that tells ill from well, and the cure.

An answer is a pair (holds, fixed). ``holds(function)`` must say True of every right function and False of every wrong
one, the patient among them; ``fixed`` must obey the laws of what the patient should have been.
"""

from collections.abc import Callable

from moe_lab.clinic import PATIENTS, Patient
from moe_lab.clinic.patient import Law
from moe_lab.exercises import Exercise, Property
from moe_lab.exercises.untouched import ArgumentChanged


def _pair(answer: object) -> tuple:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise TypeError(f"give two functions, (holds, fixed), not {type(answer).__name__}")
    return tuple(answer)


def _without_a_name(function: Callable) -> Callable:
    """A property judges what a function does: it gets neither its name nor its code."""
    return lambda *arguments: function(*arguments)


def _raised(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {error}"[:200]


def _accepts(function: Callable) -> Property:
    def holds(answer) -> str | None:
        try:
            verdict = _pair(answer)[0](_without_a_name(function))
            if verdict is None:
                return "your property returned nothing, spec True or False"
            return None if bool(verdict) else "your property says False of a right function"
        except (NotImplementedError, ArgumentChanged):
            raise
        except Exception as error:
            return _raised(error)

    return holds


def _refuses(function: Callable) -> Property:
    def holds(answer) -> str | None:
        try:
            verdict = bool(_pair(answer)[0](_without_a_name(function)))
        except NotImplementedError:
            raise
        except Exception:  # who cannot be tested has not passed; what always raises accepts nothing, either
            return None
        return "your property says True of it" if verdict else None

    return holds


def _obeys(law: Law) -> Property:
    def holds(answer) -> str | None:
        try:
            cure = _pair(answer)[1]
            return "not written yet" if cure is None else law(cure)
        except NotImplementedError:
            return "not written yet"
        except ArgumentChanged:
            raise
        except Exception as error:
            return _raised(error)

    return holds


def _exercise(patient: Patient, hints: tuple[str, ...]) -> Exercise:
    """Judge the property on every function that is known, right ones first; then the cure."""
    properties = {f"property, right, {name}": _accepts(one) for name, one in patient.healthy.items()}
    properties |= {f"property, wrong, {name}": _refuses(one) for name, one in patient.ill.items()}
    properties |= {f"cure, {name}": _obeys(law) for name, law in patient.laws.items()}
    return Exercise(patient.title, properties, hints)


HINTS = {
    "13.1": (
        "What should the loss of several layers be, if you know the loss of each? And what must one collapsed layer "
        "give, so that a function that always says the same does not pass?",
        "Take two layers that collapsed onto different experts, and an even one. together = mean of alone; and a "
        "layer of 4 experts that sends all tokens to one, with certainty, has the loss 4. The cure: a loss a layer.",
        "\n    def holds(loss):\n"
        "        one, other = 20 * torch.eye(4)[[0] * 8], 20 * torch.eye(4)[[3] * 8]\n"
        "        even = 2 * torch.eye(4)[[0, 1, 2, 3] * 2]\n"
        "        alone = [float(loss([layer], 1)) for layer in (one, other, even)]\n"
        "        together = float(loss([one, other, even], 1))\n"
        "        return abs(together - sum(alone) / 3) < 1e-3 and abs(alone[0] - 4) < 1e-3\n\n"
        "    def fixed(layers, top_k):\n"
        "        return sum(ml.losses.switch_aux(one, ml.route(one, top_k)) for one in layers) / len(layers)",
    ),
    "13.2": (
        "Nothing about the counts may depend on how gradients are computed. From what can you count without training?",
        "Draw two batches. The load is the sum of ml.route(batch, top_k).load, with recompute=True and with False. "
        "Let the cure count there, outside the layer.",
        "\n    def holds(step_load):\n"
        "        draws = torch.Generator().manual_seed(1)\n"
        "        batches = [torch.randn(16, 4, generator=draws) for _ in range(2)]\n"
        "        spec = sum(ml.route(batch, 2).load for batch in batches)\n"
        "        return all(torch.equal(step_load(batches, 2, again), spec) for again in (False, True))\n\n"
        "    def fixed(batches, top_k, recompute):\n"
        "        return sum(ml.route(batch, top_k).load for batch in batches)",
    ),
    "13.3": (
        "A bfloat16 has 8 significant bits: above 256 not every whole number is one. Which totals would it confuse?",
        "Three ranks, three experts, totals of about 90,000 that differ by a few. Choose them so that the mean lies "
        "between, ranks disagree, and you know each direction. Start from a bias that is not 0. The cure counts whole.",
        "\n    def holds(new_bias):\n"
        "        row = [30_001, 30_002, 30_000]\n"
        "        counts = torch.tensor([row, row, [30_009, 30_000, 30_001]])\n"
        "        bias = torch.tensor([0.5, 0.0, -0.5])\n"
        "        return torch.equal(new_bias(counts, bias, 0.25), torch.tensor([0.25, 0.25, -0.25]))\n\n"
        "    def fixed(counts, bias, rate):\n"
        "        total = counts.sum(dim=0)\n"
        "        return bias + rate * (total.sum() - total * len(total)).sign()",
    ),
    "13.4": (
        "For which logits do you know the loss without computing it? One such case is not enough: 1 is easy to get.",
        "All sure of one of 4 experts: 4. Each expert chosen equally often, top-2, however unsure: 1. Nine of twelve "
        "sure of one expert, three of another: 4 (9/16 + 1/16) = 2.5. The cure drops one softmax.",
        "\n    def holds(loss):\n"
        "        eye = torch.eye(4)\n"
        "        cases = [(20 * eye[[0] * 8], 1, 4.0)]\n"
        "        cases.append((2 * eye + eye.roll(1, dims=1), 2, 1.0))\n"
        "        cases.append((20 * eye[[0] * 9 + [1] * 3], 1, 2.5))\n"
        "        return all(abs(float(loss(logits, k)) - spec) < 1e-3 for logits, k, spec in cases)\n\n"
        "    def fixed(logits, top_k):\n"
        "        return ml.losses.switch_aux(logits, ml.route(logits, top_k))",
    ),
    "13.5": (
        "The router learns through the weights alone: the choice has no gradient. So ask for a gradient, at top-1.",
        "At top-1 the weight is the largest probability, and its gradient is not 0. At top-2 the two sum to 1 and "
        "have the ratio of their probabilities. The cure divides only if there is more than one.",
        "\n    def holds(weigh):\n"
        "        logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]], requires_grad=True)\n"
        "        scores = logits.softmax(dim=1).topk(2).values\n"
        "        one, two = weigh(logits, 1), weigh(logits, 2)\n"
        "        right = torch.allclose(one, scores[:, :1])\n"
        "        right = right and torch.allclose(two, scores / scores.sum(dim=1, keepdim=True))\n"
        "        return right and one.requires_grad and two.requires_grad\n\n"
        "    def fixed(logits, top_k):\n"
        "        return ml.route(logits, top_k, renormalise=top_k > 1).weights",
    ),
    "13.6": (
        "Padding says nothing. What may change if there is more of it, or if it holds other numbers?",
        "Put the same sentences into one long row without padding, and into padded rows filled with logits that want "
        "one expert: equal losses. Sentences of different lengths, or a wrong mask passes. And a collapse must be 4.",
        "\n    def holds(loss):\n"
        "        text = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))\n"
        "        sure = 20 * torch.eye(4)[[2] * 9]\n"
        "        def padded(tokens):\n"
        "            logits, mask = 3 * torch.eye(4)[[1] * 14].view(2, 7, 4), torch.zeros(2, 7, dtype=torch.bool)\n"
        "            mask[0, :6], mask[1, :3] = True, True\n"
        "            logits[mask] = tokens\n"
        "            return float(loss(logits, mask, 1))\n"
        "        alone = float(loss(text[None], torch.ones(1, 9, dtype=torch.bool), 1))\n"
        "        return abs(padded(text) - alone) < 1e-4 and abs(padded(sure) - 4) < 1e-3\n\n"
        "    def fixed(logits, mask, top_k):\n"
        "        real = logits[mask]\n"
        "        return ml.losses.switch_aux(real, ml.route(real, top_k))",
    ),
    "13.7": (
        "No expert keeps more than its capacity: true also if nobody is kept. Write a list whose answer you know.",
        "Experts 0 0 0 1 0 1, capacity 2: kept are yes yes no yes no yes. The sum must run over tokens; look at the "
        "shape of one_hot.",
        "\n    def holds(keep):\n"
        "        kept = keep(torch.tensor([0, 0, 0, 1, 0, 1]), 3, 2)\n"
        "        return kept.tolist() == [True, True, False, True, False, True]\n\n"
        "    def fixed(experts, num_experts, capacity):\n"
        "        one_hot = torch.nn.functional.one_hot(experts, num_experts)\n"
        "        return (one_hot.cumsum(dim=0) * one_hot).sum(dim=1) <= capacity",
    ),
    "13.8": (
        "What does the layer add for a token that no expert took? What stands in its row of answers must not matter.",
        "Three tokens, the middle one dropped, NaN in its row of answers: its output is 0, the others weight * answer. "
        "The cure starts from zeros. Multiplying by the mask will not do: 0 * NaN is NaN.",
        "\n    def holds(collect):\n"
        "        answers = torch.tensor([[1.0], [float('nan')], [3.0]])\n"
        "        kept, weights = torch.tensor([True, False, True]), torch.tensor([0.5, 0.5, 0.25])\n"
        "        return collect(torch.ones(3, 1), kept, weights, answers).flatten().tolist() == [0.5, 0.0, 0.75]\n\n"
        "    def fixed(tokens, kept, weights, answers):\n"
        "        return torch.where(kept[:, None], weights[:, None] * answers, 0.0)",
    ),
    "13.9": (
        "With factor 1 slips of this kind are invisible. Take another, small numbers, and a shared answer that shows.",
        "Answers 1 and 2, weights 0.5 and 0.25, shared 10, factor 3: 3 * (0.5 + 0.5) + 10 = 13. One place may scale.",
        "\n    def holds(combine):\n"
        "        routed, weights = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[0.5, 0.25]])\n"
        "        return abs(float(combine(routed, weights, torch.tensor([[10.0]]), 3.0)) - 13) < 1e-4\n\n"
        "    def fixed(routed, weights, shared, factor):\n"
        "        return factor * (weights[:, :, None] * routed).sum(dim=1) + shared",
    ),
    "13.10": (
        "Count a tiny layer by hand, with all sizes different, so that no two can be mixed up. Then one with top-2.",
        "1 token, d_model 2, experts 3 wide, 4 of them, top-1: router 2*2*4, expert 6*2*3, together 52. "
        "5 tokens, 4, experts 8 wide, 8 of them, top-2: 320 + 1920.",
        "\n    def holds(flops):\n"
        "        return flops(1, 2, 7, 3, 4, 1) == 52 and flops(5, 4, 16, 8, 8, 2) == 2240\n\n"
        "    def fixed(tokens, d_model, d_dense, d_expert, num_experts, top_k):\n"
        "        return 2 * tokens * d_model * num_experts + 6 * tokens * top_k * d_model * d_expert",
    ),
    "13.11": (
        "A property that repeats the formula repeats its mistake. Where else could the number come from?",
        "Count by hand: d_model 2, experts 3 wide, shared 5 wide, 4 experts. Router 8, an expert 18, shared 30: 56 at "
        "top-1, 74 at top-2. Or make tensors and add their numel(). Published billions catch a factor, but no router.",
        "\n    def holds(count):\n"
        "        return count(2, 3, 5, 4, 1) == 56 and count(2, 3, 5, 4, 2) == 74\n\n"
        "    def fixed(d_model, d_expert, d_shared, num_experts, top_k):\n"
        "        return d_model * num_experts + 3 * d_model * (top_k * d_expert + d_shared)",
    ),
    "13.12": (
        "Python's own whole numbers do not overflow. Compare with them, where it hurts; 2^31 is not the only limit.",
        "Rows 3, 4097 and a million; widths 4099 and 7168. A million rows of 7168 lie above 2^32, too; 4097 * 4099 is "
        "odd and above 2^24, where float32 cannot follow. The cure widens before it multiplies.",
        "\n    def holds(row_starts):\n"
        "        rows = [0, 3, 4097, 1_000_000]\n"
        "        def right(width):\n"
        "            found = row_starts(torch.tensor(rows, dtype=torch.int32), width)\n"
        "            return found.tolist() == [row * width for row in rows]\n"
        "        return right(4099) and right(7168)\n\n"
        "    def fixed(rows, row_width):\n"
        "        return rows.long() * row_width",
    ),
}

EXERCISES = {key: _exercise(patient, HINTS[key]) for key, patient in PATIENTS.items()}
