"""Our language model, written as a folder that Transformers reads."""

import copy
import dataclasses
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from moe_lab.checkpoint import publish_folder, read_json, system_errors
from moe_lab.hf.modeling import MoeLabConfig, MoeLabForCausalLM
from moe_lab.lm import LanguageModel

HOW_TO_READ = "import moe_lab.hf, then transformers.AutoModelForCausalLM.from_pretrained(this folder)"


def export(model: LanguageModel, folder: str | Path) -> Path:
    """Write a `LanguageModel` as a model of Transformers: config, safetensors, generation config, tokenizer of bytes.

    After ``import moe_lab.hf``, ``AutoModelForCausalLM.from_pretrained(folder)`` gives the same logits, the same texts
    and the same gradients, with any experts implementation; `load` does as much, and checks the folder first. The
    model that is given stays as it is. Returns the folder.

    Example:
        >>> import tempfile
        >>> from moe_lab.config import LanguageModelConfig
        >>> model = LanguageModel(LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, num_experts=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in export(model, folder).iterdir())
        ['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']

    Raises TypeError for another kind of model; ValueError for one spread over several ranks, one whose options are no
    JSON, or a folder that holds anything but an earlier export; CannotWrite, and the earlier export is unchanged.
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"model must be a LanguageModel, got {type(model).__name__}; models of Transformers have save_pretrained"
        )
    folder = Path(folder)
    check_folder(folder)
    served, tokenizer = as_transformers(model), byte_tokenizer(model.config.context)

    def write(hidden: Path) -> None:
        with system_errors():
            tokenizer.save_pretrained(hidden)
            served.save_pretrained(hidden)

    whole = folder.absolute()
    publish_folder(whole.parent, whole.name, write)
    return folder


def as_transformers(model: LanguageModel) -> MoeLabForCausalLM:
    """A copy of the model, in Transformers' clothes."""
    if any(layer.exchange is not None for layer in model.layers):
        raise ValueError("model must have all its experts on this rank, and these are spread over several")
    fields = dataclasses.asdict(model.config)
    served = MoeLabForCausalLM(MoeLabConfig(language_model=fields, read_with=HOW_TO_READ), copy.deepcopy(model))
    return served.eval()


def check_folder(folder: Path) -> None:
    """Refuse to export over anything but an earlier export: our own checkpoints have files of the same names."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    config = folder / "config.json"
    if not config.is_file() or read_json(config).get("model_type") != MoeLabConfig.model_type:
        raise ValueError(f"folder must be new, empty, or an earlier export; {folder} is none of these")


def byte_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the bytes of a text: ``list(text.encode())``, nothing added.

    Example:
        >>> byte_tokenizer(256)("né")["input_ids"] == list("né".encode())
        True
    """
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
