"""The cohort store: resting-state time series of many people, written once and used by many studies."""

from ketanet.cohort.filling import Series, fill
from ketanet.cohort.reading import StoredRows, open_cohort
from ketanet.cohort.selection import select
from ketanet.cohort.verifying import cohort_info, verify_cohort
from ketanet.cohort.writing import CohortPlan, CohortWriter, Subject

__all__ = [
    "CohortPlan",
    "CohortWriter",
    "Series",
    "StoredRows",
    "Subject",
    "cohort_info",
    "fill",
    "open_cohort",
    "select",
    "verify_cohort",
]
