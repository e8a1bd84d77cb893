"""Our language model in Transformers' clothes: the same logits, texts and gradients, and its experts can be swapped."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import moe_lab as ml
from moe_lab.__main__ import main
from moe_lab.hf.export import as_transformers, byte_tokenizer
from moe_lab.hf.modeling import MoeLabConfig, MoeLabExperts, MoeLabForCausalLM
from moe_lab.lm import SHIPPED

TINY = ml.LanguageModelConfig(d_model=16, num_layers=2, num_heads=2, context=32, d_expert=8, num_experts=4)
KINDS: dict[str, ml.LanguageModelConfig] = {
    "sigmoid_bias": TINY,
    "shared": dataclasses.replace(TINY, method="top_k", num_shared=2, mix_shared=True, balancer="quantile"),
    "pyramid": dataclasses.replace(TINY, num_layers=3, pyramid=[0, 4, 8]),
    "dense": dataclasses.replace(TINY, num_experts=0, bias_rate=0.0),
    "dropping": dataclasses.replace(
        TINY, method="switch", top_k=1, bias_rate=0.0, router_options={"capacity_factor": 0.5}
    ),
    "no slots alike": dataclasses.replace(TINY, method="expert_choice", eval_method="top_k", bias_rate=0.0),
}
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm", ml.hf.register())


def make(config):
    torch.manual_seed(0)
    model = ml.LanguageModel(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    for layer in model.layers:
        if layer.balancer is not None:
            layer.balancer.bias.copy_(torch.linspace(-0.1, 0.1, layer.num_experts))
    return model


@pytest.fixture(params=KINDS)
def model(request):
    return make(KINDS[request.param])


TEXT = torch.tensor([list(b"def load(self)"), list(b"    return 42\n")])


def test_loaded_by_transformers_it_answers_the_same_with_every_implementation(model, tmp_path):
    theirs, info = AutoModelForCausalLM.from_pretrained(ml.hf.export(model, tmp_path), output_loading_info=True)
    assert not any(info.values()) and type(theirs) is MoeLabForCausalLM and not theirs.training
    for name in IMPLEMENTATIONS:
        theirs.set_experts_implementation(name)
        torch.testing.assert_close(theirs(TEXT).logits, model(TEXT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gradients_are_the_same(model, name):
    theirs = as_transformers(model).train()
    theirs.set_experts_implementation(name)
    loss = torch.nn.functional.cross_entropy(model.train()(TEXT)[:, :-1].flatten(0, 1), TEXT[:, 1:].flatten())
    got = theirs(TEXT, labels=TEXT).loss
    torch.testing.assert_close(got, loss)
    loss.backward()
    got.backward()
    ours = dict(model.named_parameters())
    names = {"experts.gate_up_proj": "w_gate_up", "experts.down_proj": "w_down"}
    for path, parameter in theirs.language_model.named_parameters():
        for new, old in names.items():
            path = path.replace(new, old)
        torch.testing.assert_close(parameter.grad, ours.pop(path).grad, atol=1e-4, rtol=1e-4, msg=path)
    assert not ours


def test_the_experts_are_what_runs():
    """Whoever is registered is called: with weights of its own it would answer otherwise."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    theirs = as_transformers(make(KINDS["dropping"]))
    calls = []

    def nothing(experts, hidden_states, top_k_index, top_k_weights):
        calls.append((type(experts), int((top_k_index == experts.num_experts).sum())))
        return torch.zeros_like(hidden_states)

    ALL_EXPERTS_FUNCTIONS.register("nothing", nothing)
    before = theirs(TEXT).logits
    theirs.set_experts_implementation("nothing")
    assert not torch.allclose(theirs(TEXT).logits, before)
    assert [kind for kind, _ in calls] == [MoeLabExperts] * 2
    assert all(empty > 0 for _, empty in calls), "the comparison must include dropped tokens"


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_generates_as_it_writes_and_goes_on_past_the_context(name, tmp_path):
    model = make(dataclasses.replace(TINY, context=8))
    theirs = ml.hf.load(ml.hf.export(model, tmp_path))
    theirs.set_experts_implementation(name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer("def ", return_tensors="pt")
    written = theirs.generate(**prompt, max_new_tokens=10, use_cache=name == "eager")[0]  # there is none to use
    assert tokenizer.decode(written) == "def " + model.write("def ", 10)


def test_watch_sees_its_routing(tmp_path):
    model = make(TINY)
    theirs = ml.hf.load(ml.hf.export(model, tmp_path))
    with ml.hf.watch(theirs) as watch:
        theirs(TEXT)
    model(TEXT)
    assert [layer.load.tolist() for layer in watch.layers] == [layer.routing.load.tolist() for layer in model.layers]


def test_the_model_of_the_lessons_survives_the_way_from_the_command_line(tmp_path, capsys):
    assert main(["export", str(tmp_path / "lessons")]) == 0
    assert f"exported: {tmp_path / 'lessons'}; read it with moe_lab.hf.load(" in capsys.readouterr().out
    model, theirs = ml.load_model(), ml.hf.load(tmp_path / "lessons")
    text = torch.tensor([list(b"import torch\n\n\nclass Layer(")])
    torch.testing.assert_close(theirs(text).logits, model(text), atol=1e-5, rtol=1e-5)
    assert theirs.config.num_experts == 16 and theirs.config.max_position_embeddings == 256


def test_the_command_line_exports_another_model_and_refuses(tmp_path, capsys):
    make(TINY).save(tmp_path / "ours")
    assert main(["export", str(tmp_path / "theirs"), "--model", str(tmp_path / "ours")]) == 0
    assert ml.hf.load(tmp_path / "theirs").config.sizes == TINY
    assert main(["export", str(tmp_path / "ours")]) == 1
    assert "moe-lab export: folder must be new, empty, or an earlier export" in capsys.readouterr().err


def test_the_given_model_stays_as_it_is_and_shares_nothing(tmp_path):
    model = make(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = as_transformers(model)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(model.layers[0]) is ml.MoE


def test_saved_by_transformers_again_it_is_the_same(tmp_path):
    theirs = as_transformers(make(TINY))
    theirs.save_pretrained(tmp_path / "again", max_shard_size="8KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    again = ml.hf.load(tmp_path / "again")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())


def test_a_balancing_bias_stays_wide_and_learns_when_asked():
    theirs = as_transformers(make(TINY)).bfloat16().train()
    layer = theirs.language_model.layers[0]
    before = layer.balancer.bias.clone()
    theirs(TEXT)
    assert layer.balancer.bias.dtype == torch.float32 and torch.equal(layer.balancer.bias, before)
    layer.update_balancer()
    assert not torch.equal(layer.balancer.bias, before)


def test_a_new_one_starts_as_ours_does():
    torch.manual_seed(3)
    ours = ml.LanguageModel(TINY)
    torch.manual_seed(3)
    theirs = AutoModelForCausalLM.from_config(MoeLabConfig(language_model=dataclasses.asdict(TINY)))
    assert torch.equal(theirs(TEXT).logits, ours(TEXT)) and not theirs(TEXT).logits.any()
    for new, old in zip(theirs.language_model.layers, ours.layers, strict=True):
        assert torch.equal(new.w_gate_up, old.w_gate_up) and torch.equal(new.router, old.router)


def test_padding_is_used_or_refused_and_never_misread():
    theirs = as_transformers(make(TINY))
    mask = torch.ones_like(TEXT)
    mask[0, 9:] = 0
    padded = TEXT.masked_fill(mask == 0, 0)
    torch.testing.assert_close(theirs(padded, attention_mask=mask).logits[0, :9], theirs(TEXT).logits[0, :9])
    labels = padded.masked_fill(mask == 0, -100)
    losses = torch.nn.functional.cross_entropy(
        theirs(padded).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(theirs(padded, attention_mask=mask, labels=labels).loss, losses)
    with pytest.raises(ValueError, match="must be ones, then zeros: this model has no padding on the left"):
        theirs(TEXT, attention_mask=mask.flip(1))
    with pytest.raises(ValueError, match="must be all ones to generate"):
        theirs.generate(padded, attention_mask=mask, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 14\), got \(2, 3\)"):
        theirs(TEXT, attention_mask=mask[:, :3])
    with pytest.raises(ValueError, match="at most context=32 bytes, got 42"):
        theirs(TEXT.repeat(1, 3))
    for unknown in ("position_ids", "inputs_embeds", "past_key_values"):
        with pytest.raises(TypeError):
            theirs(TEXT, **{unknown: None})


def test_weights_that_a_file_lacks_are_drawn_anew_and_named(tmp_path):
    """Transformers' own loading goes on with a warning, ours does not."""
    from safetensors.torch import load_file, save_file

    path = ml.hf.export(make(TINY), tmp_path) / "model.safetensors"
    lacking = ["embedding.weight", "position", "head.weight", "norm.weight", "blocks.0.moe.experts.down_proj"]
    lacking = [f"language_model.{name}" for name in [*lacking, "blocks.1.moe.router", "blocks.1.moe.balancer.bias"]]
    save_file({n: t for n, t in load_file(path).items() if n not in lacking}, path, {"format": "pt"})
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(lacking)
    drawn = theirs.state_dict()
    assert all(drawn[name].abs().max() < 5 for name in lacking) and not drawn[lacking[-1]].any()
    assert theirs(TEXT).logits.isfinite().all() and drawn[lacking[4]].std() > 0.1
    with pytest.raises(ValueError, match=r"tensors 7 missing: language_model.blocks.0.moe.experts.down_proj; "):
        ml.hf.load(tmp_path)


def test_export_refuses(tmp_path, unchecked_shapes):
    model = make(TINY)
    with pytest.raises(TypeError, match="model must be a LanguageModel, got Linear"):
        ml.hf.export(torch.nn.Linear(2, 2), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder must be new, empty, or an earlier export"):
        ml.hf.export(model, tmp_path)
    with pytest.raises(ValueError, match="folder must be new, empty, or an earlier export"):
        ml.hf.export(model, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="folder must be new, empty, or an earlier export"):
        ml.hf.export(model, SHIPPED)
    model.layers[0].exchange = object()
    with pytest.raises(ValueError, match="all its experts on this rank"):
        ml.hf.export(model, tmp_path / "new")
    ml.hf.export(make(TINY), tmp_path / "twice")
    ml.hf.export(make(KINDS["shared"]), tmp_path / "twice")


def test_the_config_says_how_it_is_read_and_refuses_what_cannot_be(tmp_path, unchecked_shapes):
    fields = json.loads((ml.hf.export(make(TINY), tmp_path) / "config.json").read_text())
    assert fields["read_with"].startswith("import moe_lab.hf") and fields["model_type"] == "moe_lab"
    assert "auto_map" not in fields and not list(tmp_path.glob("*.py"))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.sizes == TINY
    assert (config.vocab_size, config.hidden_size) == (256, 16)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 2)
    assert (config.num_experts, config.num_experts_per_tok, config.max_position_embeddings) == (4, 2, 32)
    for change, says in [
        (dict(colour=1), "language_model: .*colour"),
        (dict(top_k="2"), "language_model: top_k must be a whole number"),
        (dict(top_k=9), "top_k must be in 1..4, got 9"),
    ]:
        with pytest.raises(ValueError, match=says):
            MoeLabConfig(language_model={**dataclasses.asdict(TINY), **change})


TOKENIZER = byte_tokenizer(32)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.text(max_size=30))
def test_ids_are_the_bytes_of_a_text(text):
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode()) and TOKENIZER.decode(ids) == text


def test_every_byte_has_its_id_and_nothing_is_added(tmp_path):
    ml.hf.export(make(TINY), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 256 and tokenizer.model_max_length == 32
    assert tokenizer("  a  .\r\n'd")["input_ids"] == list(b"  a  .\r\n'd")
    assert tokenizer.decode([0xC3, 0x28]) == b"\xc3\x28".decode(errors="replace")
