"""The cohort store: resting-state time series of many people, written once and used by many studies."""

from ketanet.cohort.filling import Series, fill
from ketanet.cohort.reading import StoredRows, grid_from_path, open_cohort
from ketanet.cohort.selection import select
from ketanet.cohort.verifying import Problem, Verification, cohort_info, verify_cohort, without_damaged
from ketanet.cohort.writing import CohortPlan, CohortWriter, Subject

__all__ = [
    "CohortPlan",
    "CohortWriter",
    "Problem",
    "Series",
    "StoredRows",
    "Subject",
    "Verification",
    "cohort_info",
    "fill",
    "grid_from_path",
    "open_cohort",
    "select",
    "verify_cohort",
    "without_damaged",
]
