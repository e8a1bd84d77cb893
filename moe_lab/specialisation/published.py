"""Published loads: how often OLMoE and Mixtral chose each expert on five kinds of text, as OLMoE's authors counted."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from moe_lab.checkpoint import read_json
from moe_lab.folders import DATA

PATH = DATA / "routing" / "published_loads.json"

MIXTRAL_REPETITION = {
    "ArXiv": ((14.0, 27.9, 22.7), (46.5, 62.3, 52.9)),
    "DM Mathematics": ((14.1, 28.4, 19.7), (44.9, 67.0, 44.5)),
    "Github": ((14.9, 28.1, 19.7), (49.9, 66.9, 49.2)),
    "Gutenberg": ((13.9, 26.1, 26.3), (49.5, 63.1, 52.2)),
    "PhilPapers": ((13.6, 25.3, 22.1), (46.9, 61.9, 51.3)),
    "PubMed Abstracts": ((14.2, 24.6, 22.0), (48.6, 61.6, 51.8)),
    "StackExchange": ((13.6, 27.2, 23.6), (48.2, 64.6, 53.6)),
    "Wikipedia (en)": ((14.4, 23.6, 25.3), (49.8, 62.1, 51.8)),
}
"""Per cent of neighbours with the same first expert, and with a common one of two, in layers 0, 15 and 31.

Jiang et al. 2024 (arXiv:2401.04088), table 5. Their chance is that of even loads: 12.5 and 46 %.
"""


@dataclass(frozen=True, eq=False)
class PublishedLoads:
    """Counts of one model: assignments, and first choices alone, of each expert by domain and layer."""

    name: str
    num_experts: int
    top_k: int
    tokens: int
    layers: tuple[int, ...]
    domains: tuple[str, ...]
    loads: Int64[Tensor, "domains layers num_experts"]
    first_choices: Int64[Tensor, "domains layers num_experts"]


def published_loads() -> dict[str, PublishedLoads]:
    """The counts behind OLMoE's comparison of domains: both models, layers 0, 7 and 15, 208,896 tokens a domain.

    Example:
        >>> olmoe = published_loads()["OLMoE-1B-7B"]
        >>> olmoe.domains, int(olmoe.loads[0, 0].sum()) == 8 * olmoe.tokens
        (('arxiv', 'book', 'c4', 'github', 'wikipedia'), True)

    Source: Muennighoff et al. 2024 (arXiv:2409.02060), section 5.3, from the repository allenai/OLMoE.
    """
    record = read_json(PATH)
    return {name: _read(name, tuple(record["layers"]), fields) for name, fields in record["models"].items()}


def _read(name: str, layers: tuple[int, ...], fields: dict) -> PublishedLoads:
    domains = tuple(fields["loads"])
    counts = [torch.tensor([fields[key][domain] for domain in domains]) for key in ("loads", "first_choices")]
    return PublishedLoads(name, fields["num_experts"], fields["top_k"], fields["tokens"], layers, domains, *counts)
