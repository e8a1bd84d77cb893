"""Published models: every file by a plain reading of its own, the forgiving names, and each refusal."""

import dataclasses
import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from moe_lab import models
from moe_lab.models import Published, plain_name, published, published_models, read_published

FOLDER = Path(__file__).parents[1] / "data" / "models"
FILES = sorted(FOLDER.glob("*.json"))
OWN = {"grok-1", "deepspeed_moe"}  # layouts that Transformers lacks
LAYOUT = {
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "num_experts", "num_experts_per_tok", "residual", "gated", "biases"),
    *("norms_per_layer", "learned_position_embeddings", "tie_word_embeddings", "max_position_embeddings"),
}


def test_every_file_is_a_model_and_every_model_a_file():
    assert len(FILES) >= 34
    assert published_models() == sorted(path.stem for path in FILES)
    assert len({plain_name(path.stem) for path in FILES}) == len(FILES), "two files would answer to one name"
    assert len({published(path.stem).name for path in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_is_read_as_it_is_written(path):
    written, model = json.loads(path.read_text(encoding="utf-8")), published(path.stem)
    assert model.slug == path.stem and re.fullmatch(r"[a-z0-9.-]+", model.slug)
    assert model.name == written["name"] and model.config == written["config"]
    figures = {"total_params": model.total_params, "active_params": model.active_params}
    figures["flops_per_sequence"] = model.flops_per_sequence
    assert figures == written["published"]
    assert all(type(figure) is int and figure > 0 for figure in figures.values() if figure is not None)
    assert set(model.precision) == {name for name, figure in figures.items() if figure is not None}
    for name, unit in model.precision.items():
        assert figures[name] % unit == 0, f"{name} has digits below its last one"
    assert model.sources == tuple(written["sources"]) and all(source.strip() for source in model.sources)
    assert model.config_source.strip()
    assert (model.embeddings is None) == (model.active_params is None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_text_is_plain_and_has_no_addresses(path):
    text = path.read_text(encoding="utf-8")
    assert text.isascii() and "http" not in text and text.endswith("}\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_config_uses_the_names_of_its_family(path):
    """A misspelt field would be ignored by Transformers, and a default counted in its place."""
    config = published(path.stem).config
    kind = config["model_type"]
    if kind in OWN:
        assert set(config) == LAYOUT
        return
    cls = CONFIG_MAPPING["deepseek_v3" if kind == "kimi_k2" else kind]
    # In the Hub's files, and read by Transformers through getattr or not at all.
    unread = {"model_type", "head_dim", "moe_layer_freq", "scoring_func", "topk_method", "rope_theta"}
    known = {field.name for field in dataclasses.fields(cls)} | set(cls.attribute_map) | set(cls.attribute_map.values())
    assert set(config) - unread <= known, kind
    for name, sub in cls.sub_configs.items():
        assert set(config.get(name, {})) - unread <= {field.name for field in dataclasses.fields(sub)}, name


def test_lists_of_layers_are_as_long_as_the_model_is_deep():
    for path in FILES:
        config = published(path.stem).config
        for name in ("num_experts", "layer_types"):
            if isinstance(config.get(name), list):
                assert len(config[name]) == config["num_hidden_layers"], path.stem


def test_the_pyramid_grows_with_depth():
    experts = published("deepspeed-pr-moe-350m-32-64").config["num_experts"]
    assert [e for e in experts if e] == [32] * 10 + [64] * 2
    assert experts[::2] == [0] * 12


def test_what_was_not_published_is_none():
    eight = published("switch-base-8")
    assert (eight.total_params, eight.active_params, eight.embeddings, eight.precision) == (None, None, None, {})


@pytest.mark.parametrize("name", ["Mixtral 8x7B", "mixtral_8x7b", "MIXTRAL-8X7B", " mixtral-8x 7b "])
def test_names_are_forgiving(name):
    assert published(name) == published("mixtral-8x7b")


@given(st.sampled_from(published_models()), st.data())
def test_capitals_spaces_and_dashes_never_matter(slug, data):
    spelt = "".join(
        data.draw(st.sampled_from([letter, letter.upper()])) + data.draw(st.sampled_from(["", "-", " ", "_"]))
        for letter in slug
    )
    assert published(spelt).slug == slug


def test_a_reader_may_change_what_he_got():
    published("dbrx").config["n_layers"] = 1
    assert published("dbrx").config["n_layers"] == 40
    with pytest.raises(dataclasses.FrozenInstanceError):
        published("dbrx").name = "another"


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"name must be .* got 'mixtral-8x70b'; nearest: mixtral-8x7b.*; all: dbrx"):
        published("mixtral-8x70b")
    with pytest.raises(ValueError, match=r"got 'zzz'; all: dbrx.*switch-xxl-128"):
        published("zzz")
    for empty in ("", "-", "../checkpoints/stdlib-moe/config"):
        with pytest.raises(ValueError, match="name must be one of the published models"):
            published(empty)


@pytest.mark.parametrize("name", [None, 7, b"dbrx", Path("dbrx")])
def test_names_are_strings(name, unchecked_shapes):
    with pytest.raises(TypeError, match="name must be the name of a published model, got"):
        published(name)


def write(tmp_path, change):
    values = json.loads((FOLDER / "mixtral-8x7b.json").read_text(encoding="utf-8"))
    change(values)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_an_unchanged_copy_is_read(tmp_path):
    copy = read_published(write(tmp_path, lambda values: None))
    assert isinstance(copy, Published)
    assert copy == dataclasses.replace(published("mixtral-8x7b"), slug="changed")


@pytest.mark.parametrize("field", models.FIELDS)
def test_no_field_may_be_missing(tmp_path, field):
    path = write(tmp_path, lambda values: values.pop(field))
    with pytest.raises(ValueError, match=rf"changed\.json lacks the field {field}; it must have name"):
        read_published(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda v: v.update(colour="red"), r"has the unknown field colour"),
        (lambda v: v.update(name=" "), r"name must be text, got ' '"),
        (lambda v: v.update(name=7), r"name must be a str, got 7"),
        (lambda v: v.update(config=[]), r"config must be a dict, got \[\]"),
        (lambda v: v["config"].pop("model_type"), r"config\.model_type must be text, got None"),
        (lambda v: v.update(sources=[]), r"sources must be a list of texts, at least one, got \[\]"),
        (lambda v: v.update(sources=["a", ""]), r"sources must be a list of texts"),
        (lambda v: v.update(sources="a paper"), r"sources must be a list of texts"),
        (lambda v: v.update(config_source=""), r"config_source must be text"),
        (lambda v: v.update(remarks=None), r"remarks must be a str, got None"),
        (lambda v: v["published"].pop("active_params"), r"lacks the field published\.active_params"),
        (lambda v: v["published"].update(size=1), r"has the unknown field published\.size"),
        (lambda v: v["published"].update(total_params=0), r"published\.total_params must be at least 1, got 0"),
        (lambda v: v["published"].update(total_params=-1), r"published\.total_params must be at least 1, got -1"),
        (lambda v: v["published"].update(total_params=46.7e9), r"published\.total_params must be a whole number"),
        (lambda v: v["published"].update(total_params=True), r"published\.total_params must be a whole number"),
        (lambda v: v["published"].update(active_params=None), r"has the unknown field precision\.active_params"),
        (lambda v: v["precision"].pop("total_params"), r"lacks the field precision\.total_params"),
        (
            lambda v: v["precision"].update(total_params=0),
            r"precision\.total_params must be in 1\.\.467.*got 0",
        ),
        (lambda v: v["precision"].update(total_params=10**11), r"precision\.total_params must be in 1\.\.46700000000"),
        (lambda v: v.update(sequence={"tokens": 5}), r"sequence must be null, as no FLOPs were published, got"),
        (lambda v: v.update(discrepancies={"total_params": " "}), r"discrepancies\.total_params must be"),
        (lambda v: v.update(discrepancies={"flops_per_sequence": "?"}), r"discrepancies\.flops_per_sequence must be"),
        (lambda v: v.update(embeddings="input"), r"embeddings must be 'both' or 'output' or 'none', got 'input'"),
        (lambda v: v.update(embeddings=None), r"embeddings must be 'both' or 'output' or 'none', got None"),
        (lambda v: v.update(embeddings=[]), r"embeddings must be 'both' or 'output' or 'none', got \[\]"),
    ],
)
def test_refusals_name_the_file_and_the_field(tmp_path, change, complaint):
    path = write(tmp_path, change)
    with pytest.raises(ValueError, match=rf"changed\.json:? {complaint}"):
        read_published(path)


def test_a_convention_without_a_figure_is_refused(tmp_path):
    def change(values):
        values["published"]["active_params"] = None
        del values["precision"]["active_params"]

    with pytest.raises(ValueError, match=r"embeddings must be None, got 'both'"):
        read_published(write(tmp_path, change))


@given(st.text(alphabet=string.printable, max_size=30))
def test_any_text_is_answered_or_refused(text):
    try:
        assert plain_name(published(text).slug) == plain_name(text)
    except ValueError as error:
        assert repr(text) in str(error)
