"""How far a network can be trusted: comparison of maps, robustness, replication."""

from ketanet.inference.blocks import study_blocks
from ketanet.inference.bootstrap import bootstrap_studies, fewer_studies
from ketanet.inference.comparison import (
    CorrelationTest,
    MapComparison,
    compare_images,
    compare_maps,
    compare_with_maps,
    correlation_test,
)
from ketanet.inference.conditions import specificity
from ketanet.inference.degree import degree_control
from ketanet.inference.direction import direction_null, joint_direction_p
from ketanet.inference.location import location_null, null_table
from ketanet.inference.replication import cohort_difference, contrast_agreement, replication_table
from ketanet.inference.robustness import robustness_table
from ketanet.inference.subsampling import enough_people, people_curve
from ketanet.inference.surrogates import surrogate_maps

__all__ = [
    "CorrelationTest",
    "MapComparison",
    "bootstrap_studies",
    "cohort_difference",
    "compare_images",
    "compare_maps",
    "compare_with_maps",
    "contrast_agreement",
    "correlation_test",
    "degree_control",
    "direction_null",
    "enough_people",
    "fewer_studies",
    "joint_direction_p",
    "location_null",
    "null_table",
    "people_curve",
    "replication_table",
    "robustness_table",
    "specificity",
    "study_blocks",
    "surrogate_maps",
]
