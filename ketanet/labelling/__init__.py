"""Canonical networks and anatomy: which known networks and regions a network falls in.

An *atlas* (:func:`atlas`) is regions with names on a grid; every region belongs to one canonical network.
:func:`label` says how much of each canonical network is covered, :func:`cluster_table` where the clusters
lie.
"""

from ketanet.labelling.atlases import atlas
from ketanet.labelling.sources import ATLAS_NAMES
from ketanet.labelling.tables import (
    canonical_membership,
    canonical_of_elements,
    canonical_shares,
    cluster_table,
    label,
    label_image,
)

__all__ = [
    "ATLAS_NAMES",
    "atlas",
    "canonical_membership",
    "canonical_of_elements",
    "canonical_shares",
    "cluster_table",
    "label",
    "label_image",
]
