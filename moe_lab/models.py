"""Published models: their configs, and the sizes that their publishers printed, with the sources of both."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from moe_lab.checkpoint import read_json
from moe_lab.checks import check_whole
from moe_lab.folders import DATA

MODELS = DATA / "models"
FIGURES = ("total_params", "active_params", "flops_per_sequence")
EMBEDDINGS = {"both": ("embedding", "output"), "output": ("output",), "none": ()}
"""What of the embeddings counts as active: input and output, the output projection only, or neither."""
FIELDS = (
    "name",
    "config",
    "published",
    "precision",
    "embeddings",
    "sequence",
    "discrepancies",
    "sources",
    "config_source",
    "remarks",
)


@dataclass(frozen=True)
class Published:
    """A model as it was published; what was not published is None.

    - ``slug`` names the file, ``name`` is the publisher's;
    - ``config`` has the fields that decide shapes, under the names of the model's config.json; `data/README.md`
      explains the two layouts that Transformers lacks, grok-1 and deepspeed_moe;
    - ``total_params``, ``active_params`` are numbers of parameters, ``flops_per_sequence`` counts a multiplication and
      an addition as two;
    - ``precision`` gives, for each figure that was published, the unit of its last digit: 46.7 B has 100,000,000;
    - ``embeddings`` says which embeddings ``active_params`` counts: both, the output's alone, or none; None where no
      ``active_params`` was published;
    - ``sequence`` says how many tokens ``flops_per_sequence`` is for: ``tokens``, and ``decoder_tokens`` of an
      encoder-decoder; None where no FLOPs were published;
    - ``discrepancies`` names, for a figure that its own config does not give, the likeliest reason;
    - ``sources`` are those of the figures, ``config_source`` that of the config;
    - ``remarks`` has what does not fit, and how ``embeddings`` is known.
    """

    name: str
    slug: str
    config: dict
    total_params: int | None
    active_params: int | None
    flops_per_sequence: int | None
    precision: dict[str, int]
    embeddings: str | None
    sequence: dict[str, int] | None
    discrepancies: dict[str, str]
    sources: tuple[str, ...]
    config_source: str
    remarks: str


def published_models() -> list[str]:
    """The models that `published` knows, in alphabetical order.

    Example:
        >>> published_models()[:3]
        ['dbrx', 'deepseek-v2', 'deepseek-v2-lite']
    """
    return sorted(path.stem for path in MODELS.glob("*.json"))


def published(name: str) -> Published:
    """A published model by its name; capitals, spaces, dashes and underscores do not matter.

    Example:
        >>> mixtral = published("Mixtral 8x7B")
        >>> mixtral.total_params, mixtral.config["num_local_experts"]
        (46700000000, 8)

    Raises ValueError for a name that is not known, with those that are nearest, and for a damaged file, with its path
    and the field; TypeError for anything but a string.
    Source: each model's own, in ``sources`` and ``config_source``.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a published model, got {name!r}")
    slugs = {plain_name(slug): slug for slug in published_models()}
    if plain_name(name) not in slugs:
        near = [slugs[match] for match in difflib.get_close_matches(plain_name(name), slugs, 3)]
        hint = f"; nearest: {', '.join(near)}" if near else ""
        known = ", ".join(slugs.values())
        raise ValueError(f"name must be one of the published models, got {name!r}{hint}; all: {known}")
    return read_published(MODELS / f"{slugs[plain_name(name)]}.json")


def plain_name(name: str) -> str:
    """What two spellings of a name share; the dot stays, since 2.4b and 24b are two models."""
    return re.sub(r"[\s_-]", "", name.lower())


def read_published(path: Path) -> Published:
    """Read one file of `data/models/`, refusing what is missing, unknown or impossible, by path and field."""
    values = read_json(path)
    _same_fields(path, "", values, FIELDS)
    for field, kind in (
        ("name", str),
        ("config", dict),
        ("published", dict),
        ("precision", dict),
        ("discrepancies", dict),
        ("remarks", str),
    ):
        _refuse_unless(isinstance(values[field], kind), path, field, f"a {kind.__name__}", values[field])
    for field in ("name", "config_source"):
        _refuse_unless(_is_text(values[field]), path, field, "text", values[field])
    config, sources, embeddings = values["config"], values["sources"], values["embeddings"]
    _refuse_unless(_is_text(config.get("model_type")), path, "config.model_type", "text", config.get("model_type"))
    listed = isinstance(sources, list) and bool(sources) and all(map(_is_text, sources))
    _refuse_unless(listed, path, "sources", "a list of texts, at least one", sources)
    _same_fields(path, "published.", values["published"], FIGURES)
    figures = {field: figure for field, figure in values["published"].items() if figure is not None}
    _same_fields(path, "precision.", values["precision"], tuple(figures))
    for field, figure in figures.items():
        _check_positive(path, f"published.{field}", figure)
        _check_positive(path, f"precision.{field}", values["precision"][field], high=figure)
    allowed = (*EMBEDDINGS,) if "active_params" in figures else (None,)
    _refuse_unless(embeddings in allowed, path, "embeddings", " or ".join(map(repr, allowed)), embeddings)
    _check_sequence(path, values["sequence"], "flops_per_sequence" in figures)
    for field, reason in values["discrepancies"].items():
        _refuse_unless(
            field in figures and _is_text(reason), path, f"discrepancies.{field}", "a figure's reason", reason
        )
    return Published(
        name=values["name"],
        slug=path.stem,
        config=config,
        **values["published"],
        precision=values["precision"],
        embeddings=embeddings,
        sequence=values["sequence"],
        discrepancies=values["discrepancies"],
        sources=tuple(sources),
        config_source=values["config_source"],
        remarks=values["remarks"],
    )


def _check_sequence(path: Path, sequence: object, needed: bool) -> None:
    allowed = "an object with tokens, and decoder_tokens or not" if needed else "null, as no FLOPs were published"
    fine = isinstance(sequence, dict) and "tokens" in sequence if needed else sequence is None
    _refuse_unless(fine, path, "sequence", allowed, sequence)
    for field, tokens in (sequence or {}).items():
        _refuse_unless(field in ("tokens", "decoder_tokens"), path, f"sequence.{field}", "absent", tokens)
        _check_positive(path, f"sequence.{field}", tokens)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _refuse_unless(fine: bool, path: Path, field: str, allowed: str, value: object) -> None:
    if not fine:
        raise ValueError(f"{path}: {field} must be {allowed}, got {value!r}")


def _same_fields(path: Path, within: str, values: dict, fields: tuple[str, ...]) -> None:
    for field in sorted(set(values) ^ set(fields)):
        state = "lacks the field" if field in fields else "has the unknown field"
        raise ValueError(f"{path} {state} {within}{field}; it must have {', '.join(fields)}")


def _check_positive(path: Path, field: str, value: object, high: int | None = None) -> None:
    try:
        check_whole(field, value, 1, high)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
