"""Every family's parameters against the model that Transformers builds from the same config, on the meta device.

Not for one config a family: each field of a config is changed in turn, and the count must follow or refuse. A number
is changed to one of three others, a field is left out or null, and in a model that sees one of three fields of the
text's config is changed, whose own family has them all: drawn by the names of family and field. MOE_LAB_THOROUGH=1
tries everything.
"""

import os
import re
import zlib

import pytest
from huggingface_hub.errors import StrictDataclassError

from moe_lab.accounting.counts import count

from .small_configs import MODEL_TYPES, SMALL_FOR, config_class

ROUTED = {
    "jetmoe": r"(mlp|self_attention\.experts)\.(in|out)put_linear",
    "doge": r"\.mlp\.(up|down)_embed",
}
"""How the routed experts are called where that is not "experts"."""

THOROUGH = os.environ.get("MOE_LAB_THOROUGH") == "1"

NOT_SHAPES = re.compile(r"token_id|return_dict|output_|use_cache|chunk_size|is_decoder|dtype|implementation|_token$")


def params(model):
    """All parameters, and those of routed experts; a tied weight once."""
    named = {name: with_two_matrices(name, model) for name, _ in model.named_parameters() if not a_copy(name, model)}
    pattern = ROUTED.get(model.config.model_type, r"\.experts\.(?!.*bias_statics)")
    routed = [p.numel() for name, p in named.items() if re.search(pattern, name)]
    return sum(p.numel() for p in named.values()), sum(routed)


def a_copy(name, model):
    """Told not to tie the output, Transformers unties the embeddings of both stacks too; T5 and NLLB have one."""
    return model.config.is_encoder_decoder and re.search(r"(encoder|decoder)\.embed_tokens", name)


def with_two_matrices(name, model):
    """Transformers gives LongCat's experts without weights a first matrix, which nothing reads and no release has."""
    weight = model.get_parameter(name)
    if model.config.model_type == "longcat_flash" and name.endswith("experts.gate_up_proj"):
        return weight[: len(model.get_parameter(name.replace("gate_up", "down")))]
    return weight


def leaves(values, inside=()):
    """The fields of a config, and of the configs within it, by their paths."""
    for name, value in values.items():
        if name in ("text_config", "vision_config", "attn_config", "ffn_config"):
            yield from leaves(value, (name,))
        else:
            yield (*inside, name), value


def put(values, path, value):
    """A copy with another value at the path."""
    name, *rest = path
    return {**values, name: put(values.get(name, {}), rest, value) if rest else value}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_family_as_it_is_by_default(model_type, small_config, fields_of, build):
    config = small_config(model_type)
    counts = count(fields_of(config, model_type))
    total, routed = params(build(config))
    assert (counts.total_params, counts.params_by_component["experts"]) == (total, routed)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_field_that_changes_the_model_changes_the_count(model_type, small_config, fields_of, build):
    """Numbers are doubled or set to odd values, flags flipped; what Transformers refuses to build is no case."""
    base = small_config(model_type).to_dict()
    tried = 0
    for path, value in leaves(base):
        if NOT_SHAPES.search(path[-1]) or not isinstance(value, int):
            continue
        if path[0] == "text_config" and not THOROUGH and draw(model_type, path, 3):
            continue
        for other in others(model_type, path, value):
            try:
                config = small_config(model_type, **put(SMALL_FOR.get(model_type, {}), path, other))
                total, routed = params(build(config))
            except Exception:
                continue
            try:
                counts = count(fields_of(config, model_type))
            except (ValueError, TypeError):
                continue  # refused: no count is not a wrong one
            found = (counts.total_params, counts.params_by_component.get("experts", 0))
            assert found == (total, routed), f"{'.'.join(path)}={other!r}, {value!r} by default"
            tried += 1
            if not THOROUGH:
                break  # one that both accept is enough
    assert tried >= 10


def others(model_type, path, value):
    """What a field is changed to, in an order that its family and its name decide."""
    if isinstance(value, bool):
        return [not value]
    numbers = [number for number in (value * 2, value + 1, 3) if number != value]
    first = draw(model_type, path, len(numbers))
    return numbers[first:] + numbers[:first]


def draw(model_type, path, ways):
    """A number below ``ways``, always the same for a family's field."""
    return zlib.crc32(f"{model_type} {path}".encode()) % ways


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_field_left_out_or_null_is_what_transformers_makes_of_it(model_type, small_config, fields_of):
    """Absent, a field has its family's default; null it may be another model. The count must know, or refuse."""
    base = fields_of(small_config(model_type), model_type)
    parts = count(base).architecture.parts
    tried = 0
    for path, null in [(path, null) for path, _ in leaves(base) for null in (False, True)]:
        if not THOROUGH and null != draw(model_type, path, 2):
            continue
        changed = put(base, path, None) if null else without(base, path)
        try:
            config = config_class(model_type).from_dict(changed)
            counts = count(changed)
        except Exception as error:
            assert isinstance(error, ValueError | TypeError | KeyError | AttributeError | StrictDataclassError), path
            continue  # refused by one of the two
        whole = fields_of(config, model_type)
        wanted = parts if whole == base else count(whole).architecture.parts
        assert counts.architecture.parts == wanted, ".".join(path)
        tried += 1
    assert tried >= 5


def without(values, path):
    """A copy without the field at the path."""
    name, *rest = path
    rest = {name: without(values[name], rest)} if rest else {}
    return {**{key: value for key, value in values.items() if key != name}, **rest}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_nonsense_in_a_field_that_counts_is_refused_by_its_name(model_type, small_config, fields_of, unchecked_shapes):
    base = fields_of(small_config(model_type), model_type)
    tried = 0
    for path in [path for path, value in leaves(base) if isinstance(value, int) and decides(base, path, value)]:
        for nonsense in (-1, "8", 2.5, [], {}):
            with pytest.raises((ValueError, TypeError), match=path[-1]):
                count(put(base, path, nonsense))
            tried += 1
    assert tried >= 25


def decides(base, path, value):
    """Whether the count depends on the field."""
    before = count(base).params_by_component
    for other in [not value] if isinstance(value, bool) else [value * 2, value + 1, 3]:
        try:
            if count(put(base, path, other)).params_by_component != before:
                return True
        except ValueError:
            continue
    return False
