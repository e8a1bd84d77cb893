"""The bug clinic: mistakes of public MoE code, in a few lines of our own, with what tells ill from well.

`PATIENTS` has each by the id of its exercise in lesson 13. Threads are named owner/repository#number.
"""

from moe_lab.clinic.costs import RESTING, TWIN
from moe_lab.clinic.counting import HEAP, ROUNDED, TWICE
from moe_lab.clinic.gradients import ALWAYS_ONE, SOFTMAX_TWICE
from moe_lab.clinic.indices import NARROW
from moe_lab.clinic.patient import Patient
from moe_lab.clinic.places import DROPPED, PADDING, PLACES
from moe_lab.clinic.scales import SCALED_TWICE

_IN_ORDER = (
    *(HEAP, TWICE, ROUNDED),  # counting
    *(SOFTMAX_TWICE, ALWAYS_ONE),  # gradients
    *(PADDING, PLACES, DROPPED),  # masks and places
    SCALED_TWICE,  # factors
    *(RESTING, TWIN),  # accounting
    NARROW,  # indices
)
PATIENTS: dict[str, Patient] = {f"13.{number}": patient for number, patient in enumerate(_IN_ORDER, 1)}
"""Patients by exercise."""

__all__ = ["PATIENTS", "Patient"]
