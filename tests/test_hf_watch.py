"""A watched model computes what it did; loads are exact, memory bounded, padding and recomputed calls not counted."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from moe_lab import LanguageModel, LanguageModelConfig, MoE, hf
from moe_lab.hf.modeling import MoeLabConfig, MoeLabForCausalLM
from moe_lab.hf.ring import Ring
from moe_lab.hf.saving import load_watch

SMALL = MixtralConfig(
    vocab_size=32, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
)  # fmt: skip
TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MixtralForCausalLM(copy.deepcopy(SMALL)).eval()


def hooks(model):
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())


def loads(seen):
    return [layer.load.tolist() for layer in seen.layers]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_a_ring_has_the_last_rows_of_a_list(size):
    draw = torch.Generator().manual_seed(size)
    for _ in range(20):
        ring, rows = Ring(size, torch.int16, empty=-1), []
        for many in torch.randint(0, 12, (5,), generator=draw).tolist():
            width = int(torch.randint(1, 4, (), generator=draw))
            ring.add(more := torch.randint(0, 99, (many, width), generator=draw))
            rows += more.tolist()
        got, want = ring.read().tolist(), rows[-size:] if size else []
        assert ring.added == len(rows) and len(got) == len(want)
        for row, expected in zip(got, want, strict=True):
            assert row == expected + [-1] * (len(row) - len(expected))


def test_fifty_calls_hold_no_more_than_keep(model):
    with hf.watch(model, keep=100) as seen, hf.watch(model) as whole, torch.no_grad():
        model(torch.arange(9)[None])
        held = [layer.bytes for layer in seen.layers]
        for call in range(50):
            model((torch.arange(9)[None] * (call + 2)) % 32)
    assert [layer.bytes for layer in seen.layers] == held and seen.ids_kept.bytes == 800
    for layer in seen.layers:
        assert layer.bytes == 100 * 2 * (2 + 4)
        assert int(layer.load.sum()) == 2 * layer.tokens == 2 * 51 * 9
        assert layer.experts.shape == layer.weights.shape == (100, 2) and layer.left_out == 459 - 100
        assert layer.positions.tolist() == list(range(359, 459))
    want = torch.cat([(torch.arange(9) * (call + 2)) % 32 for call in range(50)])[-100:]
    assert seen.token_ids.equal(want)
    for layer, other in zip(seen.layers, whole.layers, strict=True):
        assert layer.load.equal(torch.bincount(other.experts.reshape(-1), minlength=4))
    assert "the last 100 of 459 tokens" in seen.table()


def test_keep_0_keeps_counts_only(model):
    with hf.watch(model, keep=0) as seen, hf.watch(model) as other, torch.no_grad():
        model(TOKENS)
    assert loads(seen) == loads(other) and sum(loads(other)[0]) == 24
    assert seen.layers[0].bytes == 0 and not len(seen.layers[0].experts) and seen.token_ids is None


def test_experts_and_weights_are_what_the_layer_was_given(model):
    given = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda _, args: given.append(args[1:]))
    with hf.watch(model) as seen, torch.no_grad():
        model(TOKENS)
    for layer, (index, weights) in zip(seen.layers, given, strict=True):
        assert layer.experts.equal(index) and layer.weights.equal(weights) and layer.weights.dtype == weights.dtype


# ---------------------------------------------------------------- how a model is run


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm", "moe_lab"])
def test_every_implementation_is_seen_and_unchanged(model, implementation):
    hf.register()
    model.set_experts_implementation(implementation)
    want = model(TOKENS).logits
    with hf.watch(model) as seen:
        got = model(TOKENS).logits
    assert torch.equal(got, want) and got.requires_grad
    assert [sum(load) for load in loads(seen)] == [24, 24] and seen.about["experts_implementation"] == implementation


def gradients(model, reentrant=None):
    model.train().zero_grad()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_each_token_once(model, reentrant):
    want = gradients(model)
    with hf.watch(model) as seen:
        got = gradients(model, reentrant)
    assert all(map(torch.equal, got, want))
    for layer in seen.layers:
        assert layer.tokens == 12 and int(layer.load.sum()) == 24
        assert layer.recomputed == 1 and layer.calls == 1
    assert seen.token_ids.equal(TOKENS.reshape(-1)) and "1 recomputed calls" in seen.table()


def test_generate_is_followed_token_by_token(model):
    prompt = torch.arange(1, 7)[None]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 31}
    want = model.generate(prompt, **options)
    with hf.watch(model) as seen:
        got = model.generate(prompt, **options)
    assert torch.equal(got, want)
    assert seen.token_ids.equal(got[0, :-1])  # the last one is written and never read
    assert [layer.calls for layer in seen.layers] == [5, 5]


def test_inference_mode_and_training_take_turns(model):
    with hf.watch(model) as seen:
        with torch.inference_mode():
            model(TOKENS)
        model(TOKENS).logits.sum().backward()
        with torch.inference_mode():
            model(TOKENS)
    assert seen.layers[0].tokens == 36


def test_padding_is_left_out_unless_asked_for(model):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with hf.watch(model) as seen, hf.watch(model, count_padding=True) as all_of_them, torch.no_grad():
        model(TOKENS, attention_mask=mask)
    real = mask.reshape(-1).bool()
    assert seen.token_ids.equal(TOKENS.reshape(-1)[real]) and all_of_them.token_ids.equal(TOKENS.reshape(-1))
    for one, other in zip(seen.layers, all_of_them.layers, strict=True):
        assert (one.tokens, one.padded) == (10, 2) and (other.tokens, other.padded) == (12, 0)
        assert one.experts.equal(other.experts[real]) and int(one.load.sum()) == 20
    assert "2 tokens of padding were left out" in seen.table()


def test_generate_from_padded_prompts(model):
    """The mask grows with the text, and only its last column is that of the new token."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with hf.watch(model) as seen:
        model.generate(TOKENS, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert (seen.layers[0].tokens, seen.layers[0].padded) == (10 + 2 * 2, 2)


def test_token_ids_are_none_where_they_are_not_known(model):
    with hf.watch(model) as seen, torch.no_grad():
        model(inputs_embeds=torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0)))
        assert seen.token_ids is None
        model(TOKENS)
        assert seen.token_ids.tolist() == [-1] * 3 + list(range(12))
        model.model(TOKENS)  # past the model whose arguments are looked at
    assert seen.token_ids is None and seen.layers[0].tokens == 27


def test_absent_experts_are_empty_slots(model):
    experts = model.model.layers[0].mlp.experts
    model.set_experts_implementation("eager")
    index, weights = torch.tensor([[0, 4], [4, 4], [3, 1]]), torch.full((3, 2), 0.5)
    with hf.watch(model) as seen:
        experts(torch.ones(3, 16), top_k_weights=weights, top_k_index=index)
    (layer, other) = seen.layers
    assert layer.load.tolist() == [1, 1, 0, 1] and layer.experts.tolist() == [[0, -1], [-1, -1], [3, 1]]
    assert layer.weights.tolist() == [[0.5, 0.0], [0.0, 0.0], [0.5, 0.5]]
    assert layer.balance.dropped_fraction == 0.5 and other.tokens == 0 and other.balance.dead == 4
    assert seen.token_ids is None


def test_two_watches_both_count_and_a_reused_layer_counts_each_time(model):
    model.model.layers[1] = model.model.layers[0]
    with hf.watch(model) as outer, torch.no_grad():
        model(TOKENS, use_cache=False)
        with hf.watch(model) as inner:
            model(TOKENS, use_cache=False)
    (layer,), (within,) = outer.layers, inner.layers
    assert (layer.tokens, within.tokens, layer.calls) == (48, 24, 4) and outer.token_ids is None
    assert (layer.name, layer.also) == ("model.layers.0.mlp.experts", ("model.layers.1.mlp.experts",))
    assert "model.layers.0.mlp.experts = model.layers.1.mlp.experts" in outer.table()


def test_hooks_are_gone_after_an_error(model):
    def fail(*_):
        raise RuntimeError("in between")

    before, stop = hooks(model), model.model.layers[1].register_forward_pre_hook(fail)
    seen = hf.watch(model)
    with pytest.raises(RuntimeError, match="in between"), seen:
        model(TOKENS)
    assert hooks(model) == before + 1 and [layer.tokens for layer in seen.layers] == [12, 0]
    stop.remove()
    model(TOKENS)
    assert hooks(model) == before and seen.layers[0].tokens == 12
    with pytest.raises(ValueError, match="a watch is entered once"):
        seen.__enter__()


def test_ids_are_not_known_of_layers_that_missed_a_call(model):
    def fail(*_):
        raise RuntimeError("in between")

    with hf.watch(model) as seen, torch.no_grad():
        stop = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in between"):
            model(TOKENS)
        stop.remove()
        model(TOKENS)
        assert [layer.tokens for layer in seen.layers] == [24, 12] and seen.token_ids is None
        index = torch.tensor([[0, 1]]).expand(12, 2)
        model.model.layers[1].mlp.experts(torch.ones(12, 16), index, torch.ones(12, 2))  # as many, but not these
    assert [layer.tokens for layer in seen.layers] == [24, 24] and seen.token_ids is None


class Compiled(nn.Module):
    """Experts of Mixtral behind the smallest router there is."""

    def __init__(self, model):
        super().__init__()
        self.experts, self.config = model.model.layers[0].mlp.experts, model.config

    def forward(self, x):
        weights, index = x[:, :4].softmax(dim=1).topk(2)
        return self.experts(x, index, weights)


def test_a_compiled_model_counts_if_it_was_watched_before_its_first_call(model):
    torch._dynamo.reset()
    layer, x = Compiled(model), torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, backend="eager")
    with torch.no_grad():
        want = layer(x)
        with hf.watch(layer) as seen:
            assert all(torch.equal(compiled(x), want) for _ in range(3))
        assert seen.layers[0].tokens == 15 and int(seen.layers[0].load.sum()) == 30
        torch._dynamo.reset()
        compiled(x)
        with hf.watch(layer) as late:
            assert torch.equal(compiled(x), want)
    torch._dynamo.reset()
    assert late.layers[0].tokens == 0  # as the docstring says


# ---------------------------------------------------------------- our own layers


def test_our_own_model_is_seen_as_it_reads():
    torch.manual_seed(0)
    ours = LanguageModel(LanguageModelConfig(d_model=16, num_layers=2, num_heads=2, num_experts=4, d_expert=8)).eval()
    want = ours.read("watch me")
    with hf.watch(ours) as seen:
        got = ours.read("watch me")
    for layer, routing, same in zip(seen.layers, want, got, strict=True):
        assert layer.load.equal(routing.load) and layer.experts.equal(routing.experts)
        assert layer.weights.equal(routing.weights) and same.experts.equal(routing.experts)
    assert bytes(seen.token_ids.tolist()) == b"watch me" and seen.about["model_type"] is None


def test_our_model_exported_to_transformers_is_seen_once():
    """Its layers hold their experts as modules behind the interface: one layer, and not two."""
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "num_experts": 4, "d_expert": 8}
    exported = MoeLabForCausalLM(MoeLabConfig(language_model=sizes)).eval()
    with hf.watch(exported) as seen, torch.no_grad():
        exported(TOKENS)
    assert len(seen.layers) == 2 and [sum(load) for load in loads(seen)] == [24, 24]
    assert seen.token_ids.equal(TOKENS.reshape(-1))


@pytest.mark.parametrize("method", ["expert_choice", "switch"])
def test_dropped_tokens_of_our_own_layers(method):
    torch.manual_seed(1)
    top_k = 1 if method == "switch" else 2
    layer = MoE(8, 4, num_experts=4, top_k=top_k, method=method, capacity_factor=0.5)
    with hf.watch(nn.Sequential(layer)) as seen:
        for tokens in (16, 24):  # expert choice has another number of slots each time
            layer(torch.randn(tokens, 8))
    (watched,) = seen.layers
    assert watched.tokens == 40 and watched.experts[16:, : layer.routing.slots].equal(layer.routing.experts)
    asked = 40 * top_k
    assert watched.balance.dropped_fraction == pytest.approx(1 - int(watched.load.sum()) / asked)
    assert watched.balance.dropped_fraction >= 0.3


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        ("mixtral", {}, TypeError, r"model must be a torch.nn.Module, got str"),
        (nn.Linear(2, 2), {}, ValueError, r"\d+ families do: .* or moe_lab.MoE layers, got Linear, which has none"),
        (MoE(4, 4, 2, 1), {"keep": -1}, ValueError, r"keep must be at least 0, got -1"),
        (MoE(4, 4, 2, 1).to("meta"), {}, ValueError, r"model must have weights, it is on the meta device"),
    ],
)
def test_refuses_what_cannot_be_watched(model, options, error, words, unchecked_shapes):
    with pytest.raises(error, match=words):
        hf.watch(model, **options)


# ---------------------------------------------------------------- table, files, report


@pytest.fixture
def seen(model):
    with hf.watch(model, keep=7) as seen, torch.no_grad():
        model(TOKENS)
        model(TOKENS[:1])
    return seen


def test_the_table_has_what_measure_balance_says(seen):
    (head, *lines, kept), rows = seen.table().splitlines(), seen.rows()
    assert head.split()[:4] == ["layer", "experts", "tokens", "max/mean"] and kept == seen.say_kept()
    for line, row, layer in zip(lines, rows, seen.layers, strict=True):
        assert row["cv"] == layer.balance.cv and row["tokens"] == 18
        assert line.split()[0] == layer.name and f"{layer.balance.entropy:.3f}" in line.split()


@pytest.mark.parametrize("ending", ["json", "parquet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_read_back(seen, ending, dtype, tmp_path):
    for layer in seen.layers:
        layer.weights_kept._memory = layer.weights_kept._memory.to(dtype)
    again = load_watch(seen.save(tmp_path / f"seen.{ending}"))
    assert again.table() == seen.table() and again.about == seen.about and again.token_ids.equal(seen.token_ids)
    for one, other in zip(again.layers, seen.layers, strict=True):
        assert one.load.equal(other.load) and one.experts.equal(other.experts) and one.weights.equal(other.weights)
        assert one.weights.dtype == dtype and one.positions.equal(other.positions) and one.left_out == other.left_out
    assert again.say() == seen.say() and list(tmp_path.iterdir()) == [tmp_path / f"seen.{ending}"]


@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_loads_alone_are_saved_too(model, ending, tmp_path):
    with hf.watch(model, keep=0) as seen, torch.no_grad():
        model.model(TOKENS)
    again = load_watch(seen.save(tmp_path / f"seen.{ending}"))
    assert loads(again) == loads(seen) and again.token_ids is None and again.table() == seen.table()


def test_parquet_is_a_table_that_a_data_frame_reads(seen, tmp_path):
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(seen.save(tmp_path / "seen.parquet")).to_pylist()
    assert len(rows) == 14 and rows[0]["layer"] == 0 and rows[-1]["position"] == 17
    assert [row["token_id"] for row in rows[:7]] == seen.token_ids.tolist()
    assert rows[7]["experts"] == seen.layers[1].experts[0].tolist()


def test_damaged_files_are_refused_by_their_path(seen, tmp_path):
    for name in ("seen.json", "seen.parquet"):
        path = seen.save(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_watch(path)
    whole = json.loads(seen.save(tmp_path / "seen.json").read_text())
    changes = {"load": [1, 2], "experts": [[9, 0]] * 7, "tokens": -1, "dtype": "load", "num_experts": 5, "weights": 3}
    for name, value in changes.items():
        entry = {**whole["layers"][0], name: value}
        path = tmp_path / "changed.json"
        path.write_text(json.dumps({**whole, "layers": [entry]}))
        with pytest.raises(ValueError, match=r"changed\.json is damaged"):
            load_watch(path)
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="is not a recording of a watch"):
        load_watch(path)
    for call in (seen.save, load_watch):
        with pytest.raises(ValueError, match=r"path must end in \.json or \.parquet, got 'seen.txt'"):
            call(tmp_path / "seen.txt")
    for name in ("none.json", "none.parquet"):
        with pytest.raises(FileNotFoundError):
            load_watch(tmp_path / name)


class Page(HTMLParser):
    """Tags with their attributes in order, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_report_is_one_page_that_asks_for_nothing(seen, tmp_path):
    text = seen.report(tmp_path / "report.html").read_text()
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import", text)
    fetched = [a[name] for _, a in page.tags for name in ("src", "href", "srcset", "data") if name in a]
    assert len(fetched) == 2 and all(address.startswith("data:image/png;base64,") for address in fetched)
    assert "default-src 'none'" in page.all("meta")[1]["content"] and not page.all("script")
    assert page.all("html") == [{"lang": "en"}] and "prefers-color-scheme: dark" in text
    assert [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)] == ["h1"] + ["h2"] * 5
    assert next(image["alt"] for image in page.all("img")) == seen.say()
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th")) and page.all("caption")
    for word in ("mixtral", "MixtralForCausalLM", "evaluation", "grouped_mm", torch.__version__, "commit"):
        assert word in page.text, word
    assert "Which experts the first 11 tokens went to" in page.text and "Where the weights came from" in page.text


def test_what_comes_from_a_model_is_escaped(model, tmp_path):
    evil = '<script>alert("1")</script><img src=x onerror=alert(2)>'
    model.config._name_or_path = model.config.model_type = evil
    outer = nn.Module()
    outer.add_module(evil.replace(".", ""), model)
    outer.config, outer.forward = model.config, model.forward
    with hf.watch(outer) as seen, torch.no_grad():
        model(TOKENS)
    text = seen.report(tmp_path / "report.html").read_text() + seen._repr_html_()
    page = Page(text)
    assert not page.all("script") and len(page.all("img")) == 2 and evil in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_an_open_watch_can_be_read_and_shown(model):
    with hf.watch(model) as seen:
        assert repr(seen) == "Watch(MixtralForCausalLM, 2 MoE layers, 0 tokens)" and "No token was seen" in seen.say()
        seen.plot()
        assert seen._repr_html_().count("<tr>") == 3
        assert repr(seen.layers[0]).startswith("WatchedLayer('model.layers.0.mlp.experts', 4 experts, 0 tokens")
