"""The scoreboard: a source for every row, a record for every value, verdicts by rule, a README that is current."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_lab.__main__ import main
from moe_lab.experiments.recorded import race_ratios, read_record
from moe_lab.scoreboard import (
    CLAIMS,
    DATA,
    KINDS,
    SOURCES,
    VERDICTS,
    Claim,
    Demand,
    Finding,
    Row,
    Table,
    There,
    as_html,
    as_json,
    as_markdown,
    as_text,
    counted,
    judge,
    make_row,
    make_rows,
    printed,
    read_table,
    say,
    timed,
    trained,
    write_table,
)
from moe_lab.scoreboard.facts import SelfCheck
from moe_lab.scoreboard.page import BEGIN, END

ROOT = DATA.parent
BY_SLUG = {claim.slug: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def rows():
    return make_rows()


def links_to(data, folder, leave_out=()):
    """The same records, by links, but for some."""
    for path in data.rglob("*.json"):
        name = str(path.relative_to(data))
        if name not in leave_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    return folder


# ---------------------------------------------------------------- sources and links


def test_every_claim_has_a_source_with_a_name_a_date_and_a_place():
    assert len(BY_SLUG) == len(CLAIMS) and {claim.source for claim in CLAIMS} == set(SOURCES)
    for source in SOURCES:
        assert source.name.strip() and source.place.strip() and source.short.strip()
        assert re.fullmatch(r"20\d\d(-\d\d(-\d\d)?)?", source.date), source


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.slug)
def test_the_mechanism_is_there_code_and_lesson(claim):
    assert claim.code and claim.there.shape and claim.there.balance and claim.settled_by
    for path in (*claim.code, claim.lesson):
        assert (ROOT / path).exists(), path
    assert re.fullmatch(r"notebooks/\d\d_\w+\.ipynb", claim.lesson)


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.reading], ids=lambda claim: claim.slug)
def test_what_measures_a_claim_is_a_command(claim, capsys):
    command = re.match(r"`python -m moe_lab (.+)`(, on a GPU)?$", claim.settled_by)[1]
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0 and "usage" in capsys.readouterr().out


def test_every_value_traces_to_a_record_or_to_what_was_printed_or_counted(rows):
    for row in rows:
        for one in filter(None, (row.found, *row.beside, row.own)):
            assert one.kind in KINDS
            assert all((DATA / name).is_file() for name in one.files)
            assert one.files or one.kind != "measured", row.claim.slug
        assert row.found is None or row.found.files, "what stands as our measurement is read from a record"


# ---------------------------------------------------------------- records that are gone

READ = [(row.claim.slug, name) for row in make_rows() for name in row.files]


@pytest.mark.parametrize(("slug", "name"), READ)
def test_a_deleted_record_turns_its_cell_to_not_measured(slug, name, tmp_path):
    """Where a suite has an older record, that one is read, and named; without any, nothing is."""
    claim, gone = BY_SLUG[slug], [name]
    while True:
        row = make_row(claim, links_to(DATA, tmp_path / str(len(gone)), gone))
        assert not set(row.files) & set(gone)
        older = [other for other in row.files if Path(other).name.split("-")[:2] == Path(name).name.split("-")[:2]]
        if not older or not name.startswith("benchmarks/"):
            break
        gone += older
    before = make_row(claim)
    readers = [one for one in (before.found, *before.beside) if one and name in one.files]
    pairs = zip((before.found, *before.beside), (row.found, *row.beside), strict=True)
    now = [after for one, after in pairs if one and name in one.files]
    assert readers and now == [None] * len(readers)
    assert as_markdown([row]).count("not measured") > as_markdown([before]).count("not measured")
    for shown in (as_text([row]), as_html([row], ""), as_json([row])):
        assert "not measured" in shown
    if before.found in readers:
        assert row.verdict == ("not reproducible" if row.contradicted else "not measured yet")


def test_every_row_that_is_measured_here_was_tried(rows):
    assert {slug for slug, _ in READ} >= {row.claim.slug for row in rows if row.found}
    assert len(READ) > 20


def test_an_empty_folder_measures_nothing(tmp_path):
    for row in make_rows(tmp_path):
        assert row.found is None and row.files == ()
        assert row.verdict in ("not measured yet", "not a comparable quantity", "not reproducible")
        assert (row.verdict == "not reproducible") == row.contradicted


# ---------------------------------------------------------------- a GPU's records, once there are some

TIMES = {
    "align": [("align_serial", 30.0), ("sort_tokens", 2.0)],
    "order": [("grouped by 8", 1.1), ("column-major", 1.0)],
    "layer": [("moe_lab loop", 4.0), ("moe_lab triton (save=fast)", 2.0)],
    "dispatch": [("one_hot", 14.0), ("table", 2.0)],
}
SHAPES = {"align": {"num_experts": 256}, "order": {"tokens": 512, "d_in": 4096, "d_out": 28672}, "layer": {"tokens": 8}}
READERS = {"align": "amd-headline", "order": "pytorch-column-major", "layer": "pytorch-persistent"}
READERS |= {"dispatch": "deepspeed-latency"}


def write_record(folder, suite, device, driver="13.0", shape=None):
    about = {"suite": suite, "started": "2026-12-01T10:00:00Z", "commit": "0123456789abcdef", "device": device}
    about |= {"driver": driver, "threads": 2, "versions": {}}
    task = {"pass": "forward", "shape": shape or SHAPES.get(suite, {"tokens": 8}), "dtype": "bfloat16"}
    timed_rows = [{"implementation": name, "ms_p50": ms, **task} for name, ms in TIMES[suite]]
    path = folder / "benchmarks" / f"{suite}-{device.lower()}-2026-12-01-012345678.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": about, "rows": timed_rows}))
    return path


@pytest.mark.parametrize(
    ("suite", "device", "ratio", "verdict"),
    [
        ("align", "MI100", 15.0, "holds"),
        ("align", "H200", 15.0, "holds under conditions"),
        ("order", "H100", 1.1, "not reproducible"),
        ("layer", "H100", 2.0, "holds"),
        ("layer", "H200", 2.0, "holds under conditions"),
        ("dispatch", "A100", 7.0, "holds"),
    ],
)
def test_a_record_of_a_gpu_fills_its_row(suite, device, ratio, verdict, tmp_path):
    path = write_record(tmp_path, suite, device)
    row = make_row(BY_SLUG[READERS[suite]], tmp_path)
    assert list(row.found.values.values()) == pytest.approx([ratio])
    assert row.found.device == device and row.found.date == "2026-12-01" and row.found.commit.startswith("012345678")
    assert row.verdict == verdict
    assert f"benchmarks/{path.name}, {device}, 2026-12-01, commit 012345678" in as_text([row]).replace("\n    ", " ")


def test_a_cpu_times_no_kernel_and_other_shapes_are_other_claims(tmp_path):
    write_record(tmp_path, "align", "cpu", driver=None)
    assert timed.align_headline(tmp_path) is None and timed.align_all(tmp_path) is None
    write_record(tmp_path, "align", "H200", shape={"num_experts": 8})
    assert timed.align_headline(tmp_path) is None and timed.align_all(tmp_path).values
    write_record(tmp_path, "dispatch", "cpu", driver=None)
    assert timed.carrying(tmp_path).device == "cpu, 2 threads"


# ---------------------------------------------------------------- the rule


def claim_of(metric="time", baseline="a loop", devices=("H100",), low=4):
    source = SOURCES[0]
    there = There(metric, baseline, "any", "", "none")
    return Claim("x", "4x", source, there, ("README.md",), "", "", demand=Demand(low=low), devices=devices)


@pytest.mark.parametrize(
    ("claim", "values", "device", "contradicted", "verdict"),
    [
        (claim_of(metric=""), (9.0,), "H100", False, "not a comparable quantity"),
        (claim_of(baseline=""), (9.0,), "H100", True, "not a comparable quantity"),
        (claim_of(), (9.0,), "H100", True, "not reproducible"),
        (claim_of(), None, "", True, "not reproducible"),
        (claim_of(), None, "", False, "not measured yet"),
        (claim_of(), (4.0, 9.0), "NVIDIA H100 SXM", False, "holds"),
        (claim_of(), (3.6, 9.0), "NVIDIA H100 SXM", False, "holds"),
        (claim_of(), (3.0, 9.0), "NVIDIA H100 SXM", False, "holds under conditions"),
        (claim_of(), (3.0, 1.0), "NVIDIA H100 SXM", False, "not reproducible"),
        (claim_of(), (4.0, 9.0), "a laptop", False, "holds under conditions"),
        (claim_of(), (3.0, 9.0), "a laptop", False, "holds under conditions"),
        (claim_of(), (3.0, 1.0), "a laptop", False, "not measured yet"),
        (claim_of(devices=()), (4.0,), "a laptop", False, "holds"),
        (claim_of(devices=()), (3.0,), "", False, "not reproducible"),
        (claim_of(devices=("A100", "H200")), (4.0,), "NVIDIA H200", False, "holds"),
    ],
)
def test_the_verdict_follows_by_rule(claim, values, device, contradicted, verdict):
    found = values and Finding("measured", {f"case {n}": v for n, v in enumerate(values)}, device=device)
    assert judge(claim, found, contradicted) == verdict
    assert verdict in VERDICTS


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_reason_says_where_a_claim_is_met(verdict):
    values = {"small": 3.0, "large": 9.0}
    row = Row(claim_of(), Finding("measured", values, device="H100"))
    assert row.because == "met by large"
    assert Row(claim_of(low=1), row.found).because == ""
    assert Row(claim_of(low=10), row.found).because == "met by 0 of 2"
    away = Finding("measured", values, device="a laptop")
    assert Row(claim_of(), away).because == "met by 1 of 2 on a laptop, not H100"
    assert Row(claim_of(low=10), away).because == "met by none on a laptop, not H100"


def test_a_claim_is_contradicted_by_its_own_figures_only_where_they_do_not_give_it():
    own = Finding("printed", {"a": 4.7}, digits=1)
    claim = Claim(**{**vars(claim_of()), "self_check": SelfCheck(lambda data: own, Demand(low=7))})
    assert Row(claim, None, (), own).contradicted and Row(claim, None, (), own).because == "printed: 4.7x"
    assert not Row(claim, None, (), Finding("printed", {"a": 7.2})).contradicted
    assert not Row(claim, None, (), None).contradicted and not Row(claim_of(), None, (), own).contradicted


def test_a_value_is_rounded_as_the_claim_was_printed():
    assert Demand(low=4.4, digits=1).met_by(4.36) and not Demand(low=4.4, digits=1).met_by(4.34)
    assert Demand(high=0, digits=2).met_by(0.004) and not Demand(high=0, digits=2).met_by(0.006)
    assert Demand().met_by(-1)


def test_a_finding_refuses_what_it_cannot_say():
    with pytest.raises(ValueError, match="kind must be one of measured, counted"):
        Finding("guessed", {"a": 1.0})
    with pytest.raises(ValueError, match="values must hold at least one"):
        Finding("measured", {})
    assert Finding("measured", {"a": 1.0}).provenance == "device not recorded, date not recorded, commit not recorded"
    assert say(Finding("counted", {"a": 1024.0, "b": 2048.0}, "steps", 0)) == "1,024 to 2,048 steps"


# ---------------------------------------------------------------- the values


def test_the_three_ratios_are_those_of_lesson_10(rows):
    found = {row.claim.slug: row.found for row in rows}
    for seed, ratios in race_ratios(read_record()).items():
        for name in ("steps", "seconds", "examples"):
            assert found[f"switch-{name}"].values[f"seed {seed}"] == getattr(ratios, name)


def test_exact_means_that_every_recorded_load_is_equal():
    """The record's cv is a mean; here are its loads themselves, and that the readings show the worst seed."""
    record = json.loads((DATA / trained.BALANCE).read_text())
    loads = [load for run in record["runs"] if run["name"] == "balanced" for step in run["loads"] for load in step]
    assert len(loads) > 100 and all(len(set(load)) == 1 for load in loads)
    values = trained.evenness(DATA).values
    assert [name for name, value in values.items() if value == 0] == [
        "balanced, as trained",
        "balanced, causal, as trained",
    ]
    worst = max(run["judged"]["top_k"]["cv"] for run in record["runs"] if run["name"] == "balanced")
    assert values["balanced, by plain top-k, token by token"] == worst


def test_numbers_by_hand():
    rows = printed.amd_rows(DATA).values
    assert rows["H200, 2,097,152 tokens"] == pytest.approx(12_361.15 / 4_508.42)
    assert (round(min(rows.values()), 1), round(max(rows.values()), 1)) == (1.6, 20.5)
    assert not any(9.5 <= ratio < 10.5 for ratio in rows.values())  # no row says 10
    assert printed.switch_parts(DATA).values == {"steps x examples": 7.5 * 0.625}
    assert counted.written_tiles(DATA).values["first product, 16 tokens"] == pytest.approx(72 / (8 * 224))
    assert counted.dispatch_flops(DATA).values["2,048 tokens"] == 2 * 16 * 160
    assert counted.amd_chain(DATA).values["8,192 tokens"] == 2 * 256 + 2 * 256
    ratios = make_row(BY_SLUG["ours-every-expert"]).found.values
    assert ratios["Mixtral 8x7B"] == pytest.approx(4, rel=1e-3) and ratios["OLMoE-1B-7B"] == pytest.approx(8, rel=1e-2)
    assert max(make_row(BY_SLUG["ours-dense"]).found.values.values()) < 1


def test_the_floors_of_right_orders_are_those_of_lesson_08():
    floors = counted.order_floors(DATA).values
    assert {name: round(floor, 2) for name, floor in floors.items()} == {
        "Mixtral up, 16384 rows": 1.44,
        "Mixtral up, 32 tokens": 1.01,
    }


def test_no_verdict_of_today_rests_on_a_gpu(rows):
    """Read this again once there is a record of one."""
    gpu = [path for path in (DATA / "benchmarks").glob("*.json") if json.loads(path.read_text())["run"]["driver"]]
    waiting = {row.claim.slug for row in rows if row.found is None and row.claim.reading}
    assert gpu or waiting >= {"amd-headline", "amd-rows", "pytorch-column-major", "pytorch-persistent"}


# ---------------------------------------------------------------- how it looks


class Cells(HTMLParser):
    """Every opening tag, and the words of header cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scopes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.scopes += [value for name, value in attrs if name == "scope"]


def test_the_html_has_a_caption_and_headers_of_columns_and_rows(rows):
    cells = Cells(Table(rows)._repr_html_())
    assert cells.tags.count("caption") == 1 and cells.tags.count("tr") == len(rows) + 1
    assert cells.scopes.count("col") == 5 and cells.scopes.count("row") == len(rows)
    marked = Claim(**{**vars(claim_of()), "words": "<b>", "lesson": "notebooks/07_x"})
    assert "&lt;b&gt;" in as_html([Row(marked, None)], "")


def test_every_form_shows_every_row_and_its_verdict(rows):
    text, page, whole = repr(Table(rows)), as_markdown(rows), json.loads(as_json(rows))
    assert [row["slug"] for row in whole] == list(BY_SLUG)
    for row, values in zip(rows, whole, strict=True):
        assert row.claim.words in text and row.claim.words in page
        assert f"verdict: {row.verdict}" in text and values["verdict"] == row.verdict
        assert row.found is None or values["here"]["values"] == row.found.values
    assert max(map(len, text.splitlines())) <= 110
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table} == {6} and len(table) == len(rows) + 1
    assert all(f"**{verdict}**: " in page for verdict in VERDICTS)
    assert all(source.place in page for source in SOURCES)


def test_links_of_the_page_lead_somewhere(rows):
    links = set(re.findall(r"\]\(([^)]+)\)", as_markdown(rows)))
    assert len(links) > 20 and all((ROOT / link).exists() for link in links), links


# ---------------------------------------------------------------- the README, and the command


def test_the_readme_is_current(rows):
    """Where this fails: python -m moe_lab scoreboard --write README.md."""
    assert read_table((ROOT / "README.md").read_text(), "README.md") == as_markdown(rows)


def test_writing_touches_only_what_is_between_the_markers(tmp_path, rows):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert write_table(page, rows) and not write_table(page, rows)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n|") and text.endswith(f"\n{END}\nafter\n")
    assert read_table(text) == as_markdown(rows) and list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("text", ["", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}", f"{BEGIN}"])
def test_a_page_without_its_two_markers_is_refused_and_kept(text, tmp_path, rows):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must hold <!-- scoreboard --> once"):
        write_table(page, rows)
    assert page.read_text() == text


def test_the_command_prints_every_form(rows, capsys, tmp_path):
    for option, wanted in ((), as_text(rows)), (("--json",), as_json(rows)), (("--markdown",), as_markdown(rows)):
        assert main(["scoreboard", *option]) == 0
        assert capsys.readouterr().out == wanted + "\n"
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}")
    for said in ("written", "was up to date"):
        assert main(["scoreboard", "--write", str(page)]) == 0
        assert capsys.readouterr().out == f"{page}: {said}\n"
    assert main(["scoreboard", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("verdict: not measured yet") > 5
    assert main(["scoreboard", "--data", str(tmp_path / "none")]) == 1
    assert "is no folder of records" in capsys.readouterr().err
