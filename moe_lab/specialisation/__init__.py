"""What experts learn: labels of tokens, what an expert says about them in bits, and what chance alone would say.

Everything works on whole numbers, experts beside labels, and knows nothing of models. ``experts`` is one expert a
token, (tokens,), or a routing's table, (tokens, slots), with -1 for an empty slot. In a table every assignment counts
once: the quantity is that of a slot drawn by fair lots from all that are filled. ``routing.experts[:, 0]`` asks about
first choices alone.
"""

from moe_lab.specialisation.chance import Chance, bootstrap_interval, shuffled_baseline
from moe_lab.specialisation.documents import DOMAINS, Document, installed_documents, label_documents, number_documents
from moe_lab.specialisation.information import (
    conditional_information,
    count_table,
    entropy,
    information,
    information_bias,
    mutual_information,
    pointwise_information,
)
from moe_lab.specialisation.labels import Labels, label_bytes, label_classes, label_columns, label_constructs
from moe_lab.specialisation.loads import (
    Share,
    domain_shift,
    idle_experts,
    jensen_shannon,
    loads_by_group,
    repetition,
    saturation,
)

__all__ = [
    "DOMAINS",
    "Chance",
    "Document",
    "Labels",
    "Share",
    "bootstrap_interval",
    "conditional_information",
    "count_table",
    "domain_shift",
    "entropy",
    "idle_experts",
    "information",
    "information_bias",
    "installed_documents",
    "jensen_shannon",
    "label_bytes",
    "label_classes",
    "label_columns",
    "label_constructs",
    "label_documents",
    "loads_by_group",
    "mutual_information",
    "number_documents",
    "pointwise_information",
    "repetition",
    "saturation",
    "shuffled_baseline",
]
