"""Published models from the reader's own disk: found, looked through, loaded with our experts. Never downloaded."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import CacheNotFound, scan_cache_dir, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from torch.nn.modules import module as registration
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import model_type_to_module_name

from moe_lab.accounting.counts import count
from moe_lab.hf.families import families
from moe_lab.hf.inspection import CONFIG_NAME, Checkpoint, inspect_folder, read_object
from moe_lab.hf.serving import serve

SMALLEST_OPEN = "allenai/OLMoE-1B-7B-0924"
AUTO_CLASSES = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForImageTextToText)
SAFELY = dict(local_files_only=True, trust_remote_code=False)
FEW_NUMBERS, FEW_MODULES = 2**26, 2**14  # what a model may have beyond what its weights say: tables of positions, say


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    device_map: str | dict | None = None,
) -> PreTrainedModel:
    """Load a model of Transformers, with our experts: from a folder, or by its name from the hub's cache on this disk.

    Nothing is downloaded, nothing is unpickled, and no code from the checkpoint runs. Before the model is built, the
    folder is looked through (`inspect_folder`), and the config is held against what the weight files hold. After it is
    loaded, every tensor must have found its place: none missing, none left over, none of another shape. ``dtype`` and
    the two others are those of ``from_pretrained``.

    Example:
        >>> import tempfile
        >>> import moe_lab as ml
        >>> sizes = ml.LanguageModelConfig(d_model=16, num_layers=1, num_heads=2, num_experts=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     type(load(ml.hf.export(ml.LanguageModel(sizes), folder))).__name__
        'MoeLabForCausalLM'

    Raises FileNotFoundError where there is no such model, and says how to get one; ValueError, with the file and the
    reason, for one that is damaged, asks for code, or is of a family whose experts cannot be reached.
    """
    checkpoint = inspect_folder(find(source, revision, cache_dir))
    config = read_model_config(checkpoint)
    kind = auto_class(config)
    try_out(checkpoint, config, kind)
    options = dict(dtype=dtype, attn_implementation=attn_implementation, device_map=device_map)
    options = {name: value for name, value in options.items() if value is not None}
    with refusing(f"the weights in {checkpoint.folder} cannot be loaded"):
        model, info = kind.from_pretrained(
            checkpoint.folder,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # all of them are listed below
            output_loading_info=True,
            **SAFELY,
            **options,
        )
    check_places(checkpoint, info)
    return serve(model)


def at_hand(cache_dir: str | Path | None = None) -> list[str]:
    """The models in the hub's cache that `load` can take: safetensors, of a family with an experts interface.

    Example:
        >>> at_hand("an empty folder")
        []
    """
    served = {family.name for family in families() if family.served}
    try:
        repositories = scan_cache_dir(cache_dir).repos
    except (CacheNotFound, ValueError):
        return []
    found = []
    for repository in repositories:
        for version in repository.revisions if repository.repo_type == "model" else ():
            with contextlib.suppress(OSError, ValueError):
                names = {file.file_name for file in version.files}
                family = read_object(version.snapshot_path, CONFIG_NAME).get("model_type", "")
                if model_type_to_module_name(family) in served and any(n.endswith(".safetensors") for n in names):
                    found.append(repository.repo_id)
    return sorted(set(found))


def find(source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder of a checkpoint: itself, or the snapshot that the hub's cache has of it."""
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a folder or the name of a model, got {type(source).__name__}")
    try:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return folder
        if folder.is_file():
            raise NotADirectoryError
        return Path(snapshot_download(str(source), revision=revision, cache_dir=cache_dir, local_files_only=True))
    except NotADirectoryError:
        raise ValueError(f"source must be a folder with {CONFIG_NAME} and weights, {source} is a file") from None
    except (OSError, RuntimeError, ValueError):  # not in the cache, or no name that a model or a folder can have
        raise FileNotFoundError(how_to_get(str(source), cache_dir)) from None


def how_to_get(source: str, cache_dir: str | Path | None = None) -> str:
    """What to say where nothing is: what was looked for, what there is, what to download.

    Example:
        >>> how_to_get("no/model", "an empty folder").split(". ")[0]
        "no folder 'no/model', and no model of that name in the hub's cache (an empty folder)"
    """
    here = ", ".join(at_hand(cache_dir)) or "none"
    size = count("olmoe-1b-7b")
    return (
        f"no folder {source!r}, and no model of that name in the hub's cache ({cache_dir or HF_HUB_CACHE}). "
        f"Models at hand: {here}. This library never downloads. The smallest fully open MoE is {SMALLEST_OPEN}, "
        f"{size.total_params / 1e9:.1f} B parameters, {size.bytes('bfloat16') / 1e9:.1f} GB in bfloat16: "
        f"hf download {SMALLEST_OPEN}. With no download at all: ml.hf.export(ml.load_model(), folder)"
    )


def read_model_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The config as Transformers reads it."""
    with refusing(f"{checkpoint.folder / CONFIG_NAME} is no config that Transformers can read"):
        return AutoConfig.from_pretrained(checkpoint.folder, **SAFELY)


def auto_class(config: PreTrainedConfig) -> type:
    """The class of Transformers that loads a config: one that writes text."""
    for kind in AUTO_CLASSES:
        if type(config) in kind._model_mapping:
            return kind
    raise ValueError(f"config must be of a family that writes text, got model_type {config.model_type!r}")


def try_out(checkpoint: Checkpoint, config: PreTrainedConfig, kind: type) -> None:
    """Build the model without memory for its weights, and stop once it is larger than the files can be.

    Raises ValueError for a config that cannot be built, one too large for the files, or a family that `serve` refuses.
    """
    with refusing(f"{checkpoint.folder / CONFIG_NAME} does not describe the weights beside it"):
        with torch.device("meta"), no_init_weights(), at_most(checkpoint):
            skeleton = kind.from_config(config, trust_remote_code=False)
    serve(skeleton)


@contextlib.contextmanager
def at_most(checkpoint: Checkpoint) -> Iterator[None]:
    """Within this, whoever builds more modules or numbers than the checkpoint can fill gets a ValueError."""
    numbers = 2 * checkpoint.numbers + FEW_NUMBERS  # twice: tied weights are made, then replaced
    modules = 16 * len(checkpoint.shapes) + FEW_MODULES
    seen = dict(numbers=0, modules=0)

    def meet(owner, name, part) -> None:
        tensor = isinstance(part, torch.Tensor)
        seen["numbers"] += math.prod(part.shape) if tensor else 0
        seen["modules"] += not tensor
        if seen["numbers"] > numbers or seen["modules"] > modules:
            raise ValueError(
                f"it asks for more than the {checkpoint.numbers} numbers in {len(checkpoint.shapes)} tensors that the "
                "weight files hold"
            )

    hooks = [
        registration.register_module_parameter_registration_hook(meet),
        registration.register_module_buffer_registration_hook(meet),
        registration.register_module_module_registration_hook(meet),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_places(checkpoint: Checkpoint, info: dict) -> None:
    """Refuse weights that did not fill the model, by what Transformers reports of loading them."""
    wrong = [f"{name} is {tuple(has)} and must be {tuple(want)}" for name, has, want in sorted(info["mismatched_keys"])]
    found = {
        "of another shape": wrong,
        "missing": sorted(info["missing_keys"]),
        "not the model's": sorted(info["unexpected_keys"]),
        "unreadable": list(map(str, info["error_msgs"])),
    }
    said = [f"{len(names)} {what}: {'; '.join(names[:3])}" for what, names in found.items() if names]
    if said:
        raise ValueError(f"the weights in {checkpoint.folder} do not fit its {CONFIG_NAME}; tensors {', '.join(said)}")


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever Transformers says of a stranger's file into one kind of error, which says what it was about."""
    try:
        yield
    except Exception as error:  # any field can be wrong in its own way, and each family notices in another
        reason = str(error).strip() or type(error).__name__
        raise ValueError(f"{what}: {reason:.400}") from error
