"""Checkpoints from strangers: whole ones load and answer as before, all others are refused with file and reason."""

import json
import pickle
import shutil
import struct

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

import moe_lab as ml
from moe_lab.hf.checkpoints import at_most
from moe_lab.hf.inspection import Checkpoint, check_numbers, inspect_folder
from moe_lab.lm import SHIPPED

SIZES = dict(
    hidden_size=16,
    intermediate_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=32,
    num_hidden_layers=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def build(kind):
    torch.manual_seed(0)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(num_local_experts=4, **SIZES)).eval()
    return OlmoeForCausalLM(OlmoeConfig(num_experts=4, num_experts_per_tok=2, **SIZES)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each family, whole and in shards: ``saved[kind, shards]`` is a folder, not to be changed."""
    folders = {}
    for kind in ("mixtral", "olmoe"):
        for shards in (False, True):
            folders[kind, shards] = tmp_path_factory.mktemp(f"{kind}-{shards}")
            build(kind).save_pretrained(folders[kind, shards], max_shard_size="8KB" if shards else "1GB")
    return folders


@pytest.fixture
def copy(saved, tmp_path):
    """Call ``copy(kind, shards)``: a folder of the test's own."""
    return lambda kind="olmoe", shards=False: shutil.copytree(saved[kind, shards], tmp_path / "copy")


def change_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def header_of(path):
    """The header of a safetensors file, and the bytes behind it."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_file(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_a_whole_one_loads_with_our_experts_and_answers_the_same(saved, kind, shards):
    model = ml.hf.load(saved[kind, shards])
    assert model.config._experts_implementation == "moe_lab" and not model.training
    torch.testing.assert_close(model(TOKENS).logits, build(kind)(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_a_dtype_may_be_asked_for(saved):
    assert ml.hf.load(str(saved["olmoe", False]), dtype="bfloat16").dtype == torch.bfloat16


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_a_pickle_is_never_opened(copy, tmp_path, name):
    folder, trace = copy(), tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(
        ValueError, match=rf"weights only as {name} \(pickle, which runs code .* safetensors are needed"
    ):
        ml.hf.load(folder)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes()).close()
    assert trace.exists()  # so the payload is one


def test_a_pickle_beside_safetensors_is_left_alone(copy, tmp_path):
    folder, trace = copy(), tmp_path / "it-ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(trace)))
    ml.hf.load(folder)
    assert not trace.exists()


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(copy, cut):
    path = copy() / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file .* cut off"):
        ml.hf.load(path.parent)


def test_a_file_with_more_than_its_header_says_is_refused(copy):
    path = copy() / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file"):
        ml.hf.load(path.parent)


@pytest.mark.parametrize(
    "lie", ["length", "longest", "no json", "a list", "overlap", "negative", "beyond", "shape", "dtype", "twice"]
)
def test_a_header_that_lies_is_refused(copy, lie):
    path = copy() / "model.safetensors"
    header, data = header_of(path)
    first, second = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])[:2]
    if lie in ("length", "longest"):
        content = path.read_bytes()
        path.write_bytes(struct.pack("<Q", 40 if lie == "length" else 2**63) + content[8:])
    elif lie in ("no json", "a list"):
        write_file(path, b"{" if lie == "no json" else b"[1]", data)
    elif lie == "twice":
        entry = json.dumps({first: header.pop(second)})[1:-1]  # where the second was, under the name of the first
        write_file(path, f"{{{entry}, {json.dumps(header)[1:]}".encode(), data)
    else:
        place = header[first]["data_offsets"]
        if lie == "overlap":
            header[second]["data_offsets"] = place
            header[second]["shape"] = header[first]["shape"]
        elif lie == "negative":
            header[first]["data_offsets"] = [-4, place[1]]
        elif lie == "beyond":
            header[first]["data_offsets"] = [place[0], 2**40]
        elif lie == "shape":
            header[first]["shape"] = [2**31, 2**31, 2**31]
        else:
            header[first]["dtype"] = "object"
        write_file(path, header, data)
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file"):
        inspect_folder(path.parent)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../{outside}", "may only name files of its own folder"),
        ("/tmp/x.safetensors", "may only name files of its own folder"),
        ("..\\x.safetensors", "may only name files of its own folder"),
        ("inner/x.safetensors", "may only name files of its own folder"),
        ("pytorch_model.bin", r"allowed: \.safetensors"),
        ("../../etc/x", r"allowed: \.safetensors"),
        (7, r"allowed: \.safetensors"),
        ("absent.safetensors", "no file .*absent.safetensors; was the download interrupted"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(copy, tmp_path, name, says):
    folder = copy(shards=True)
    outside = shutil.copy(sorted(folder.glob("*.safetensors"))[0], tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    places[sorted(places)[0]] = name.format(outside=outside.name) if isinstance(name, str) else name
    change_json(index, weight_map=places)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        ml.hf.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_link_out_of_the_folder_is_refused(copy, tmp_path, name):
    folder = copy()
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is a link out of its folder"):
        ml.hf.load(folder)


def test_an_index_must_agree_with_its_files(copy):
    folder = copy(shards=True)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())["weight_map"]
    first, last = sorted(set(whole.values()))[0], sorted(set(whole.values()))[-1]
    moved = next(tensor for tensor, name in whole.items() if name == first)
    change_json(index, weight_map={**whole, moved: last})
    with pytest.raises(ValueError, match=rf"{last} lacks {moved}, which model.safetensors.index.json says it holds"):
        ml.hf.load(folder)
    change_json(index, weight_map=whole)
    save_file({**load_file(folder / last), moved: torch.zeros(1)}, folder / last)
    with pytest.raises(ValueError, match=rf"{last} holds {moved}, and so does another file"):
        ml.hf.load(folder)
    for broken in ([], {}, "x"):
        change_json(index, weight_map=broken)
        with pytest.raises(ValueError, match="must have a weight_map from tensors to files"):
            ml.hf.load(folder)


def test_tensors_must_be_the_models(copy):
    path = copy() / "model.safetensors"
    whole = load_file(path)
    norm, expert = "model.norm.weight", "model.layers.1.mlp.experts.2.up_proj.weight"
    for name in (norm, expert):
        save_file({key: value for key, value in whole.items() if key != name}, path, {"format": "pt"})
        with pytest.raises(ValueError, match=r"do not fit its config.json|cannot be loaded"):
            ml.hf.load(path.parent)
        save_file({**whole, name: torch.zeros(3, 5)}, path, {"format": "pt"})
        with pytest.raises(ValueError, match=r"do not fit its config.json|cannot be loaded"):
            ml.hf.load(path.parent)
    save_file({**whole, "colour": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"tensors 1 not the model's: colour"):
        ml.hf.load(path.parent)
    save_file({**whole, norm: torch.zeros(5)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"tensors 1 of another shape: model.norm.weight is \(5,\) and must be"):
        ml.hf.load(path.parent)
    save_file(whole, path, {"format": "pt"})
    change_json(path.parent / "config.json", hidden_size=32)
    with pytest.raises(ValueError, match=r"tensors \d+ of another shape"):
        ml.hf.load(path.parent)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(num_hidden_layers=10**9), "num_hidden_layers must be at most 4096 beside weight files of 45 tensors"),
        (dict(num_experts=10**7), "num_experts must be at most 4096"),
        (dict(text=dict(num_layers=[1, 10**6])), "num_layers must be at most 4096"),
        (dict(hidden_size=2**40), "hidden_size must be at most 16777216 beside"),
        (dict(max_position_embeddings=10**12), "max_position_embeddings must be at most 16777216"),
        (dict(num_experts=4000, num_hidden_layers=4000), "asks for more than the"),
        (dict(vocab_size=2**23), "asks for more than the"),
        (dict(hidden_act="rm -rf"), "config.json does not describe the weights beside it: .*rm -rf"),
        (dict(num_attention_heads=0), "config.json does not describe the weights|is no config"),
        (dict(num_hidden_layers="2"), "config.json is no config that Transformers can read|does not describe"),
        (dict(model_type="colour"), "is no config that Transformers can read: .*colour"),
        (dict(model_type=None), "must name its model_type, got None"),
        (dict(model_type="vit"), "must be of a family that writes text, got model_type 'vit'"),
        (dict(auto_map={"AutoModelForCausalLM": "evil.Model"}), "has the field 'auto_map': it names Python code"),
        (dict(text_config=dict(auto_map={"AutoConfig": "evil.Config"})), "has the field 'auto_map'"),
        (dict(quantization_config={"quant_method": "gptq"}), "has the field 'quantization_config'"),
        (dict(attn_implementation="someone/kernels"), "has attn_implementation 'someone/kernels', code from the hub"),
        (dict(transformers_weights="../x.safetensors"), "has the field 'transformers_weights'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(copy, fields, says):
    folder = copy()
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    change_json(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=says):
        ml.hf.load(folder)


def test_a_config_that_is_none_is_refused(copy):
    path = copy() / "config.json"
    whole = path.read_text()
    for text, says in [
        (whole[: len(whole) // 2], "config.json is not valid JSON"),
        ("[1]", "must hold a JSON object, it holds a list"),
        ("[" * 10**5, "config.json is not valid JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "config.json"),
        ("{}", "must name its model_type, got None"),
        (whole.replace('"vocab_size"', '"num_experts"'), "the field 'num_experts' stands there twice"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            ml.hf.load(path.parent)
    path.write_bytes(b"\xff\xfe" + whole.encode())
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        ml.hf.load(path.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*config.json"):
        ml.hf.load(path.parent)


def test_a_huge_json_is_not_read(copy):
    path = copy(shards=True) / "model.safetensors.index.json"
    with path.open("r+b") as file:
        file.truncate(2**40)  # a hole: no bytes on the disk
    with pytest.raises(ValueError, match=r"index.json must have at most \d+ bytes, it has 1099511627776"):
        ml.hf.load(path.parent)


def test_other_kinds_of_folders_are_named(copy, saved, tmp_path):
    with pytest.raises(ValueError, match=r"this library's own: ml.load_model reads it"):
        ml.hf.load(SHIPPED)
    folder = copy()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="makes this an adapter to another model"):
        ml.hf.load(folder)
    (folder / "adapter_config.json").unlink()
    part = folder / "shard-00000-model-00001-of-00001.safetensors"
    part.write_bytes(b"")
    with pytest.raises(ValueError, match="parts of a distributed training"):
        ml.hf.load(folder)
    part.unlink()
    (folder / "model.safetensors").rename(folder / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"no weights in .*model.safetensors or .*notes.txt"):
        ml.hf.load(folder)
    (folder / "notes.txt").rename(folder / "model.gguf")
    with pytest.raises(ValueError, match=r"weights only as model\.gguf; safetensors are needed"):
        ml.hf.load(folder)
    with pytest.raises(ValueError, match=r"source must be a folder .*model.gguf is a file"):
        ml.hf.load(folder / "model.gguf")


def test_a_dense_model_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=r"must be of a family with Transformers' experts interface .*got Llama"):
        ml.hf.load(tmp_path)


def test_what_is_built_stops_at_what_the_files_hold(tmp_path):
    """The stop comes while a model is built, and does not stay."""
    one_tensor = Checkpoint(tmp_path, {}, {"a": (2, 2)})
    config = OlmoeConfig(**{**SIZES, "hidden_size": 2**20, "intermediate_size": 2**20})
    config._experts_implementation = "eager"
    with pytest.raises(ValueError, match="more than the 4 numbers in 1 tensors"), torch.device("meta"):
        with at_most(one_tensor):
            OlmoeExperts(config)
    with torch.device("meta"):
        OlmoeExperts(config)
    check_numbers(Checkpoint(tmp_path, {"num_hidden_layers": 5000}, dict.fromkeys(map(str, range(5000)), (1,))))


def cached(folder, cache, name="someone/tiny"):
    """Put a folder into a hub cache as the hub's own client does: blobs, and links to them."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / ("a" * 40)
    for part in (home / "blobs", home / "refs", snapshot):
        part.mkdir(parents=True)
    (home / "refs" / "main").write_text("a" * 40)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


def test_a_name_is_found_in_the_hubs_cache(saved, tmp_path):
    snapshot = cached(saved["olmoe", True], tmp_path)
    assert ml.hf.at_hand(tmp_path) == ["someone/tiny"]
    model = ml.hf.load("someone/tiny", cache_dir=tmp_path)
    torch.testing.assert_close(model(TOKENS).logits, build("olmoe")(TOKENS).logits, atol=1e-5, rtol=1e-5)
    shard = sorted(snapshot.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no file .*{shard.name}; was the download interrupted"):
        ml.hf.load("someone/tiny", cache_dir=tmp_path)
    elsewhere = shutil.copy(saved["olmoe", True] / shard.name, tmp_path / "elsewhere.safetensors")
    shard.symlink_to(elsewhere)
    with pytest.raises(ValueError, match="is a link out of its folder"):
        ml.hf.load("someone/tiny", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["someone/absent", "../../absent", "./nowhere", "a" * 300, "~nobody/x"])
def test_what_is_not_there_is_said_with_what_to_download(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        ml.hf.load(name, cache_dir=tmp_path)
    said = str(error.value)
    assert name in said and "Models at hand: none" in said and "never downloads" in said
    assert "hf download allenai/OLMoE-1B-7B-0924" in said and "6.9 B parameters, 13.8 GB in bfloat16" in said


def test_a_source_must_be_a_name_or_a_path(unchecked_shapes):
    with pytest.raises(TypeError, match="source must be a folder or the name of a model, got int"):
        ml.hf.load(7)


def test_no_option_opens_a_door(saved):
    for option in ("trust_remote_code", "use_safetensors", "weights_only", "force_download"):
        with pytest.raises(TypeError):
            ml.hf.load(saved["olmoe", False], **{option: True})


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(file=st.sampled_from(["config.json", "model.safetensors"]), place=st.floats(0, 1), bit=st.integers(0, 7))
@example(file="model.safetensors", place=0.0, bit=0)
def test_a_flipped_bit_gives_a_documented_error_or_a_model_of_the_same_shape(saved, tmp_path_factory, file, place, bit):
    """Places are drawn where a file says what it is: all of the config, the header of the weights."""
    folder = shutil.copytree(saved["olmoe", False], tmp_path_factory.mktemp("flip") / "copy")
    content = bytearray((folder / file).read_bytes())
    end = len(content) if file == "config.json" else 8 + struct.unpack("<Q", content[:8])[0]
    content[min(int(place * end), end - 1)] ^= 1 << bit
    (folder / file).write_bytes(content)
    want = {name: tensor.shape for name, tensor in build("olmoe").state_dict().items()}
    try:
        model = ml.hf.load(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error) or "model_type" in str(error)
    else:
        assert {name: tensor.shape for name, tensor in model.state_dict().items()} == want
    shutil.rmtree(folder)


def test_our_own_export_is_loaded_with_its_tokenizer(tmp_path):
    torch.manual_seed(0)
    ours = ml.LanguageModel(ml.LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, num_experts=4)).eval()
    model = ml.hf.load(ml.hf.export(ours, tmp_path))
    ids = AutoTokenizer.from_pretrained(tmp_path)("def ", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model(ids).logits, ours(ids), atol=1e-5, rtol=1e-5)
