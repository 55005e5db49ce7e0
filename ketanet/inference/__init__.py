"""How far a network can be trusted: comparison of maps, robustness, replication."""

from ketanet.inference.comparison import MapComparison, compare_images, compare_maps
from ketanet.inference.robustness import robustness_table

__all__ = ["MapComparison", "compare_images", "compare_maps", "robustness_table"]
