"""The cohort store: resting-state time series of many people, written once and used by many studies."""

from ketanet.cohort.appending import Appending
from ketanet.cohort.columns import Subject
from ketanet.cohort.filling import Series, fill
from ketanet.cohort.info import cohort_info
from ketanet.cohort.parts import Part, PartWriter
from ketanet.cohort.quality import CohortQuality, cohort_quality
from ketanet.cohort.reading import StoredRows, grid_from_path, open_cohort
from ketanet.cohort.selection import select
from ketanet.cohort.verifying import Problem, Verification, verify_cohort, without_damaged
from ketanet.cohort.writing import CohortPlan, CohortWriter

__all__ = [
    "Appending",
    "CohortPlan",
    "CohortQuality",
    "CohortWriter",
    "Part",
    "PartWriter",
    "Problem",
    "Series",
    "StoredRows",
    "Subject",
    "Verification",
    "cohort_info",
    "cohort_quality",
    "fill",
    "grid_from_path",
    "open_cohort",
    "select",
    "verify_cohort",
    "without_damaged",
]
