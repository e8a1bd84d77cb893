"""What experts learn: labels by tables of our own, quantities by their definitions, chance by what it covers."""

import itertools
import math
import random
import tokenize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import contingency
from scipy.stats import entropy as scipy_entropy

from moe_lab import measure_balance, route
from moe_lab import specialisation as sp
from moe_lab.specialisation import documents as texts
from moe_lab.specialisation.labels import CONSTRUCTS
from moe_lab.specialisation.published import MIXTRAL_REPETITION, published_loads


def draw(*shape, high, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- labels

SOURCE = b'''"""Module."""
import os  # why


class A:
    "docs" " too"

    async def f(self, n=0x1F):
        """Says \xc3\xa9."""
        x = f"{n!r:>{n}} { {'a': 1}['a'] }" + 'no docs'
        "not docs either"
        return x if n >= 1e3 else None
'''


def test_every_byte_has_its_class():
    labels = sp.label_classes(b"\ta1 = 'x'\r\n  ~(y);\xc3\x00\n")
    assert labels.words() == (
        ["indent", "letter", "digit", "space", "operator", "space", "quote", "letter", "quote", "newline", "newline"]
        + ["indent"] * 2
        + ["operator", "bracket", "letter", "bracket", "punctuation", "other", "other", "newline"]
    )
    every = sp.label_classes(b"x" + bytes(range(33, 127))).words()
    assert "other" not in every, "all that prints has a class"


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_labels_are_one_a_byte_whatever_the_bytes(text):
    for label in (sp.label_bytes, sp.label_classes, sp.label_columns):
        labels = label(text)
        assert len(labels) == len(text)
        assert all(0 <= value < len(labels.names) for value in labels.values.tolist())
    assert bytes(sp.label_bytes(text).values.tolist()) == text


def test_columns_are_counted_from_the_last_end_of_line():
    text = b"".join(b"x" * length + b"\n" for length in (0, 1, 5, 100))
    names = ["0", "1-3", "4-7", "8-15", "16-31", "32-63", "64+"]
    expected = []
    for length in (0, 1, 5, 100):
        for column in range(length + 1):
            expected.append(names[sum(column >= edge for edge in (1, 4, 8, 16, 32, 64))])
    labels = sp.label_columns(text)
    assert labels.words() == expected and list(labels.names) == names


def pieces(construct, text=SOURCE):
    """The stretches of one construct, as text."""
    words = sp.label_constructs(text).words()
    runs = itertools.groupby(range(len(text)), key=lambda at: words[at])
    return [text[(run := list(places))[0] : run[-1] + 1].decode() for word, places in runs if word == construct]


def test_constructs_are_those_of_python():
    assert pieces("docstring") == ['"""Module."""', '"docs"', '" too"', '"""Says é."""']
    assert pieces("string") == ["""f"{n!r:>{n}} { {'a': 1}['a'] }\"""", "'no docs'", '"not docs either"']
    assert pieces("comment") == ["# why"]
    assert pieces("number") == ["0x1F", "1e3"]
    assert pieces("keyword") == ["import", "class", "async", "def", "return", "if", "else", "None"]
    assert pieces("name") == ["os", "A", "f", "self", "n", "x", "x", "n"]
    assert "".join(pieces("white space")).strip() == ""
    assert set(sp.label_constructs(SOURCE).words()) == set(CONSTRUCTS)


def test_an_f_string_in_pieces_is_one_string(monkeypatch):
    """As Python 3.12 and later see it, on any version: one f-string inside another, names and operators within."""
    start, end = 900, 901
    monkeypatch.setitem(tokenize.tok_name, start, "FSTRING_START")
    monkeypatch.setitem(tokenize.tok_name, end, "FSTRING_END")
    text = "x=f'{f\"{y}\"}'"
    seen = [(tokenize.NAME, 0, 1), (tokenize.OP, 1, 2), (start, 2, 4), (tokenize.OP, 4, 5), (start, 5, 7)]
    seen += [(tokenize.OP, 7, 8), (tokenize.NAME, 8, 9), (tokenize.OP, 9, 10), (end, 10, 11), (tokenize.OP, 11, 12)]
    seen += [(end, 12, 13)]
    tokens = [tokenize.TokenInfo(kind, text[a:b], (1, a), (1, b), text) for kind, a, b in seen]
    monkeypatch.setattr(tokenize, "generate_tokens", lambda readline: iter(tokens))
    assert sp.label_constructs(text.encode()).words() == ["name", "operator"] + ["string"] * 11


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_end_of_a_text_may_be_anything(end):
    words = sp.label_constructs(b"x=1" + end).words()
    assert words == ["name", "operator", "number"] + ["white space"] * len(end)


@pytest.mark.parametrize("text", [b"if", b'"""', b"x = (", b"\xff", b"  x\n y", b"a\rb ?", b'{"a": true,,}', b"\x00"])
def test_what_is_not_python_is_refused(text):
    with pytest.raises(ValueError, match="text must be Python source"):
        sp.label_constructs(text)


def test_constructs_of_every_document_cover_what_tokenize_names():
    """An independent count: the bytes of all NAME tokens, straight from tokenize."""
    for document in sp.installed_documents():
        if document.is_python and len(document.text) < 20_000:
            words = sp.label_constructs(document.text).words()
            with_lines = iter(document.text.splitlines(keepends=True))
            tokens = list(tokenize.tokenize(lambda lines=with_lines: next(lines, b"")))
            if not any("FSTRING" in tokenize.tok_name[token.type] for token in tokens):
                names = sum(len(token.string.encode()) for token in tokens if token.type == tokenize.NAME)
                assert words.count("name") + words.count("keyword") == names, document.name


# ---------------------------------------------------------------- documents


def test_documents_are_unseen_and_long_enough():
    documents = sp.installed_documents()
    assert [document.domain for document in documents] == [domain for domain in sp.DOMAINS for _ in range(4)]
    assert all(len(document.text) >= texts.SIZE for document in documents)
    assert sum(document.is_python for document in documents) == 12
    number, domain = sp.number_documents(documents, size=3)
    assert number.tolist() == [n for n in range(20) for _ in range(3)]
    assert domain.tolist() == [n // 4 for n in range(20) for _ in range(3)]


def test_a_document_that_is_not_there_is_named(monkeypatch):
    for missing in ("jinja2/nowhere.py", "no_such_package/METADATA", "no_such_package/x.py", "moe_lab/folders.py"):
        monkeypatch.setattr(texts, "DOMAINS", {"x": (missing,)})
        with pytest.raises(FileNotFoundError, match=missing.replace("/", ".")):
            sp.installed_documents()


def test_documents_are_labelled_as_wholes_and_then_cut():
    document = sp.Document("a.py", "x", b'"""one\ntwo"""\n')
    cut = sp.label_documents([document], sp.label_constructs, size=6)
    assert cut.words() == ["docstring"] * 6, "the first six bytes alone are no Python"
    with pytest.raises(ValueError, match="at least size=99"):
        sp.label_documents([document], sp.label_classes, size=99)
    with pytest.raises(ValueError, match="documents must be at least one"):
        sp.label_documents([], sp.label_classes)


# ---------------------------------------------------------------- information


@pytest.mark.parametrize("slots", [1, 3])
def test_counts_are_counted_one_by_one(slots):
    experts, labels = draw(200, slots, high=7) - 1, draw(200, high=5, seed=1)
    table = sp.count_table(experts, labels, 6, 9)
    for label, expert in itertools.product(range(9), range(6)):
        by_hand = sum(row.tolist().count(expert) for row in experts[labels == label])
        assert int(table[label, expert]) == by_hand
    assert torch.equal(table.sum(dim=0), route_load(experts, 6))


def route_load(experts, num_experts):
    return torch.tensor([int((experts == expert).sum()) for expert in range(num_experts)])


@pytest.mark.parametrize("seed", range(5))
def test_information_is_the_sum_of_its_definition_and_scipys(seed):
    experts = draw(300, high=6, seed=seed)
    labels = torch.where(draw(300, high=2, seed=seed + 50) > 0, experts // 2, draw(300, high=4, seed=seed + 90))
    table = sp.count_table(experts, labels, 6)
    p = (table.double() / table.sum()).tolist()
    rows, columns = [sum(row) for row in p], [sum(column) for column in zip(*p, strict=True)]
    by_hand = sum(
        p[r][c] * math.log2(p[r][c] / (rows[r] * columns[c])) for r in range(len(p)) for c in range(6) if p[r][c] > 0
    )
    assert sp.mutual_information(experts, labels, 6) == pytest.approx(by_hand, abs=1e-10)
    table = table[table.sum(dim=1) > 0]
    # the G statistic is 2 n ln 2 times the information
    g = contingency.chi2_contingency(
        table[:, table.sum(dim=0) > 0].numpy(), lambda_="log-likelihood", correction=False
    )[0]
    assert sp.information(table) == pytest.approx(g / (2 * 300 * math.log(2)), abs=1e-9)
    assert sp.entropy(table.sum(dim=1)) == pytest.approx(scipy_entropy(table.sum(dim=1).numpy(), base=2))
    points = sp.pointwise_information(table).nan_to_num(0, neginf=0)
    assert float((points * table).sum() / table.sum()) == pytest.approx(by_hand, abs=1e-10)


def test_information_keeps_its_laws():
    experts, labels = draw(500, high=8), draw(500, high=5, seed=1)
    found = sp.mutual_information(experts, labels, 8)
    assert found == sp.mutual_information(labels, experts, 5), "symmetric"
    renamed = torch.tensor([3, 1, 4, 0, 2])[labels]
    assert found == pytest.approx(sp.mutual_information(experts, renamed, 8), abs=1e-10), "names do not matter"
    assert sp.mutual_information(experts, experts, 8) == pytest.approx(sp.entropy(torch.bincount(experts)))
    merged = sp.mutual_information(experts, labels // 2, 8)
    assert merged <= found + 1e-12, "coarser labels say no more"
    assert sp.mutual_information(experts, torch.zeros_like(labels), 8) == 0


def test_the_bias_is_what_independent_tokens_show():
    many = [
        sp.mutual_information(draw(400, high=8, seed=seed), draw(400, high=5, seed=seed + 1000), 8)
        for seed in range(200)
    ]
    table = torch.full((5, 8), 10)
    assert sum(many) / 200 == pytest.approx(sp.information_bias(table), rel=0.1)


def test_what_is_known_already_says_nothing_more():
    byte = draw(2000, high=6)
    coarse, coin = byte // 2, draw(2000, high=2, seed=9)
    experts = byte * 2 + coin  # the byte, and a coin
    assert sp.conditional_information(experts, coarse, byte, 12) == pytest.approx(0, abs=1e-9)
    assert sp.conditional_information(experts, coin, byte, 12) == pytest.approx(1, abs=0.02)
    by_part = sum(  # I(e; l | g) = sum over g of p(g) I within g
        float((byte == g).double().mean()) * sp.mutual_information(experts[byte == g], coin[byte == g], 12)
        for g in range(6)
    )
    assert sp.conditional_information(experts, coin, byte, 12) == pytest.approx(by_part, abs=1e-9)


# ---------------------------------------------------------------- chance


def test_shuffling_takes_away_what_was_there_and_leaves_the_bias():
    experts = draw(1000, high=8)
    chance = sp.shuffled_baseline(experts, experts, 8, samples=50)
    assert chance.mean == pytest.approx(49 / (2 * 1000 * math.log(2)), rel=0.15)
    assert chance.p_value(sp.mutual_information(experts, experts, 8)) == pytest.approx(1 / 51)
    assert chance.values == sp.shuffled_baseline(experts, experts, 8, samples=50).values, "seeded"
    assert chance.values != sp.shuffled_baseline(experts, experts, 8, samples=50, seed=1).values


def test_documents_swap_labels_as_wholes():
    """Six documents with tastes of their own; three domains that mean nothing. Shuffled bytes see a sensation."""
    documents = torch.arange(6).repeat_interleave(200)
    experts = torch.where(draw(1200, high=10) < 5, documents, draw(1200, high=6, seed=1))
    domains = torch.tensor([0, 1, 2, 1, 2, 0])[documents]
    found = sp.mutual_information(experts, domains, 6)
    tokens = sp.shuffled_baseline(experts, domains, 6, samples=60)
    wholes = sp.shuffled_baseline(experts, domains, 6, samples=60, groups=documents)
    assert tokens.p_value(found) < 0.02 and found > 20 * tokens.mean
    assert wholes.p_value(found) > 0.2 and wholes.interval[0] <= found <= wholes.interval[1]


def test_dealing_within_what_is_given_keeps_every_pair_of_counts():
    given_, labels = draw(300, high=4), draw(300, high=5, seed=1)
    experts = given_.clone()
    chance = sp.shuffled_baseline(experts, labels, 4, given=given_, samples=5)
    assert chance.values == (0.0,) * 5, "the expert is the byte: it can say no more, whatever is dealt"
    loud = sp.shuffled_baseline(labels, labels, 5, given=given_, samples=5)
    assert loud.mean < 0.2 < sp.conditional_information(labels, labels, given_, 5)
    settled = sp.shuffled_baseline(draw(300, high=6, seed=2), given_, 6, given=given_, samples=5)
    assert settled.values == (0.0,) * 5, "among equals there is nothing to deal"


def test_drawing_again_does_not_add_the_bias_twice():
    """Nothing to know: what is found is bias, and tokens drawn again would show twice as much."""
    experts, labels = draw(400, high=8, seed=3), draw(400, high=5, seed=4)
    low, high = sp.bootstrap_interval(experts, labels, 8, torch.arange(400), samples=60)
    assert low < sp.mutual_information(experts, labels, 8) and low <= 0.01 < high


def test_the_interval_of_documents_covers_the_truth_where_that_of_tokens_does_not():
    """40 documents of 25 equal tokens say no more than 40 tokens. Expert and label agree in 4 of 5: 0.278 bits."""
    truth, covered = 1 + 0.8 * math.log2(0.8) + 0.2 * math.log2(0.2), {"documents": 0, "tokens": 0}
    for seed in range(25):
        rng = random.Random(seed)
        drawn = [(label := rng.randrange(2), label if rng.random() < 0.8 else 1 - label) for _ in range(40)]
        labels, experts = torch.tensor(drawn).repeat_interleave(25, dim=0).T
        for name, blocks in (("documents", torch.arange(1000) // 25), ("tokens", torch.arange(1000))):
            low, high = sp.bootstrap_interval(experts, labels, 2, blocks, samples=40, seed=seed)
            covered[name] += low <= truth <= high
    assert covered["documents"] >= 20 and covered["tokens"] <= 12, covered


# ---------------------------------------------------------------- loads


def test_divergence_is_scipys():
    one, other = draw(9, high=50), draw(9, high=50, seed=1)
    assert sp.jensen_shannon(one, other) == pytest.approx(jensenshannon(one.numpy(), other.numpy(), base=2) ** 2)
    assert sp.jensen_shannon(one, other) == sp.jensen_shannon(other, one) == sp.jensen_shannon(3 * one, other)
    both = torch.stack([one * int(other.sum()), other * int(one.sum())])
    assert sp.jensen_shannon(one, other) == pytest.approx(sp.information(both)), "half of the time each"


def test_a_domain_that_means_nothing_shifts_no_more_than_chance():
    loads = draw(12, 8, high=100)
    between, within, chance = sp.domain_shift(loads, [n % 3 for n in range(12)])
    assert chance.interval[0] <= between <= chance.interval[1] and chance.p_value(between) > 0.05
    pairs = list(itertools.combinations(range(12), 2))
    by_hand = [sp.jensen_shannon(loads[a], loads[b]) for a, b in pairs if a % 3 == b % 3]
    assert within == pytest.approx(sum(by_hand) / len(by_hand))
    moved = torch.cat([loads[:6] + torch.tensor([500] + [0] * 7), loads[6:]])
    between, within, chance = sp.domain_shift(moved, [0] * 6 + [1] * 6)
    assert between > 2 * within and chance.p_value(between) < 0.02


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_fair_lots_repeat_as_often_as_chance_says(slots):
    experts = route(torch.zeros(6000, 12), slots, "random", generator=torch.Generator().manual_seed(0)).experts
    share = sp.repetition(experts, 12)
    exact = 1 - math.comb(12 - slots, slots) / math.comb(12, slots)
    assert share.found == pytest.approx(share.chance, abs=0.02) and share.chance == pytest.approx(exact, abs=0.005)


def test_repetition_by_hand_with_empty_slots_and_documents():
    experts = torch.tensor([[0, 1], [1, -1], [2, 0], [2, 1], [-1, -1]])
    share = sp.repetition(experts, 3, torch.tensor([0, 0, 0, 1, 1]))
    assert share.found == pytest.approx(1 / 3)
    sets = [{0, 1}, {1}, {2, 0}, {2, 1}, set()]
    assert share.chance == pytest.approx(sum(bool(a & b) for a in sets for b in sets) / 25)
    with pytest.raises(ValueError, match="two tokens that are neighbours"):
        sp.repetition(experts, 3, torch.arange(5))


def test_fair_lots_leave_idle_what_chance_says():
    experts = route(torch.zeros(8000, 16), 2, "random", generator=torch.Generator().manual_seed(0)).experts
    for length in (1, 10, 40):
        share = sp.idle_experts(experts, 16, length)
        assert share.found == pytest.approx(share.chance, abs=0.01)
        assert share.chance == pytest.approx((14 / 16) ** length, abs=0.01)
    dead = measure_balance(route_load(experts[:10], 16)).dead
    assert sp.idle_experts(experts[:10], 16, 10).found == dead / 16
    assert sp.idle_experts(experts[:19], 16, 10).found == dead / 16, "what is left at the end is left out"


def test_saturation_counts_common_experts_whatever_their_slot():
    final = torch.tensor([[0, 1], [2, 3], [4, -1]])
    assert sp.saturation(final, final) == pytest.approx(5 / 6), "an empty slot agrees with nothing"
    assert sp.saturation(torch.tensor([[1, 5], [0, 1], [4, 0]]), final) == pytest.approx(2 / 6)
    fair = [
        route(torch.zeros(4000, 64), 8, "random", generator=torch.Generator().manual_seed(s)).experts for s in (0, 1)
    ]
    assert sp.saturation(*fair) == pytest.approx(8 / 64, abs=0.005)


# ---------------------------------------------------------------- published


def test_published_loads_add_up():
    for published in published_loads().values():
        assert published.loads.shape == (5, 3, published.num_experts)
        assert set(published.loads.sum(dim=2).flatten().tolist()) == {published.tokens * published.top_k}
        assert set(published.first_choices.sum(dim=2).flatten().tolist()) == {published.tokens}
        assert bool((published.first_choices <= published.loads).all())
        assert int(published.loads.max()) <= published.tokens, "a token names an expert once"
    assert all(len(row) == 3 for rows in MIXTRAL_REPETITION.values() for row in rows)


# ---------------------------------------------------------------- what is refused

TWO, THREE = torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sp.mutual_information(TWO, THREE, 2), "same tokens, at least one; got 2 and 3"),
        (lambda: sp.mutual_information(TWO[:0], TWO[:0], 2), "at least one; got 0 and 0"),
        (lambda: sp.mutual_information(TWO + 2, TWO, 2), r"experts must lie in -1..1 \(num_experts=2\), found 2"),
        (lambda: sp.mutual_information(TWO - 2, TWO, 2), "found -2"),
        (lambda: sp.mutual_information(TWO, TWO - 1, 2), "labels must not be negative, found -1"),
        (lambda: sp.count_table(TWO, TWO + 3, 2, 3), "labels must lie in 0..2, found 3"),
        (lambda: sp.conditional_information(TWO, TWO, THREE, 2), "labels and given must belong to the same tokens"),
        (lambda: sp.shuffled_baseline(TWO, TWO, 2, groups=TWO, given=TWO), "groups and given are two baselines"),
        (lambda: sp.shuffled_baseline(TWO, torch.arange(2), 2, groups=TWO), "group 0 has several"),
        (lambda: sp.shuffled_baseline(TWO, TWO, 2, groups=TWO + 1), "numbered without a gap, none is 0"),
        (lambda: sp.shuffled_baseline(TWO, TWO, 2, groups=THREE), "labels and groups must belong to the same tokens"),
        (lambda: sp.shuffled_baseline(TWO, TWO, 2, given=THREE), "labels and given must belong to the same tokens"),
        (lambda: sp.bootstrap_interval(TWO, TWO, 2, TWO), "blocks must number at least two pieces"),
        (lambda: sp.jensen_shannon(TWO, THREE), "two vectors of one length"),
        (lambda: sp.jensen_shannon(TWO, TWO), "at least one assignment each"),
        (
            lambda: sp.domain_shift(torch.ones(2, 2, dtype=torch.int64), [0, 1]),
            "a pair of equal and a pair of different",
        ),
        (lambda: sp.domain_shift(torch.ones(2, 2, dtype=torch.int64), [0]), "one a document, got 1 for 2"),
        (lambda: sp.idle_experts(TWO, 2, 3), "at least length=3 tokens, got 2"),
        (lambda: sp.saturation(TWO[None], THREE[None]), r"got \(1, 2\) and \(1, 3\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
