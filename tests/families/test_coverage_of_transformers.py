"""No family of Transformers with experts is forgotten: each is counted, or named here with the reason why not."""

from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_lab.accounting.families import FAMILIES
from moe_lab.hf import families

NOT_COUNTED: dict[str, str] = {
    "diffusion_gemma": "writes a block of text in steps, so a token has no cost of its own; its stacks share weights",
    "dots3_note_vision_encoder": "a tower that reads pictures; the decoder behind it is counted",
    "nemo_speechlm": "a decoder of any kind behind one that hears: count the config of the decoder",
    "qwen3_omni_moe_talker_text": "writes codes of sound, several for each token of text",
    "vitpose_backbone": "reads pictures, and the caller names the expert for a whole one: nothing is routed",
}
"""Families of Transformers with experts that the count does not cover, and why."""


def test_every_family_with_experts_is_counted_or_named():
    models = Path(transformers.__file__).parent / "models"
    found = {family.name for family in families()}
    covered = {name.removesuffix("_text").replace("-", "_") for name in FAMILIES}
    assert not set(NOT_COUNTED) & covered
    assert found - covered - set(NOT_COUNTED) == set()
    counted = {name for name in covered - {"kimi_k25", "nemotron_h_omni"} if (models / name).exists()}  # these pass on
    assert counted <= found  # or the search would miss others like it


def test_every_config_with_experts_is_read_or_named():
    """Some models only pass on what they are given: their code names no experts, their config holds one that does."""
    silent = {name for name in CONFIG_MAPPING if name not in FAMILIES and has_experts(name)}
    assert silent - set(NOT_COUNTED) == set()


def has_experts(model_type):
    """Whether a config of this type, or one inside of it, has a number of experts above 1, or belongs to a family."""
    try:
        values = CONFIG_MAPPING[model_type]().to_dict()
    except Exception:  # a config that cannot be built without being told more
        return False
    inner = [value for value in values.values() if isinstance(value, dict)]
    return any(value.get("model_type") in FAMILIES for value in inner) or any(
        isinstance(value.get(name), int) and value[name] > 1
        for value in [values, *inner]
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    )
