"""``python -m moe_lab count``: the table, the JSON, and what it says when it cannot count."""

import json

import pytest

import moe_lab as ml
from moe_lab.__main__ import main


def test_the_table_of_a_published_model(capsys):
    assert main(["count", "mixtral-8x7b", "--context", "1000"]) == 0
    said = capsys.readouterr().out
    counts = ml.count("mixtral-8x7b")
    for number in (counts.total_params, counts.active_params, counts.flops_per_token(1000)):
        assert f"{number:,}" in said
    assert "46,700,000,000" in said and said.count("equal as printed") == 2


def test_json_of_a_file(tmp_path, capsys):
    config = ml.published("olmoe-1b-7b").config
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["count", str(tmp_path / "config.json"), "--json", "--embeddings", "none"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = ml.count(config, embeddings="none")
    assert (found["total_params"], found["active_params"]) == (counts.total_params, counts.active_params)
    assert sum(row["params"] for row in found["components"]) == counts.total_params
    assert found["flops_per_token"] == counts.flops_per_token(found["context"])
    assert found["published"] == []


def test_json_of_a_published_model_has_the_verdicts_under_the_publishers_convention(capsys):
    assert main(["count", "gpt-oss-20b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["embeddings"] == "output" and found["active_params"] == 3_608_307_264
    assert [figure["verdict"] for figure in found["published"]] == ["equal as printed"] * 2


def test_an_encoder_decoder_has_flops_a_sequence_only(capsys):
    assert main(["count", "switch-base-8"]) == 0
    assert "flops_per_sequence" in capsys.readouterr().out


def test_the_list(capsys):
    assert main(["count", "--list"]) == 0
    said = capsys.readouterr().out
    assert "kimi-k2" in said and "qwen3_moe" in said
    assert main(["count", "--list", "--json"]) == 0
    assert "kimi-k2" in json.loads(capsys.readouterr().out)["published models"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nosuch"], "name must be one of the published models, got 'nosuch'"),
        (["nosuch.json"], "there is no file nosuch.json"),
        ([], "--list has the names"),
        (["mixtral-8x7b", "--context", "0"], "context must be at least 1, got 0"),
    ],
)
def test_it_says_what_is_wrong_and_fails(arguments, says, capsys, unchecked_shapes):
    assert main(["count", *arguments]) == 1
    assert says in capsys.readouterr().err
