"""Group statistics of seed connectivity: t, p, corrections for many tests, differences of groups."""

from ketanet.group.maps import MIN_SUBJECTS, SEEDS_PER_BLOCK, PassSize, one_sample
from ketanet.group.testing import threshold
from ketanet.group.welch import network_difference, two_sample

__all__ = [
    "MIN_SUBJECTS",
    "SEEDS_PER_BLOCK",
    "PassSize",
    "network_difference",
    "one_sample",
    "threshold",
    "two_sample",
]
