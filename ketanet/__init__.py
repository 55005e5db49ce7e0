"""Functional connectivity network mapping: from published coordinates and a cohort of resting brains to the network
they share.

Names are imported when first used, so that ``import ketanet`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ketanet.batches import many_seeds
    from ketanet.clusters import connect
    from ketanet.cohort import cohort_info, cohort_quality, open_cohort, select, verify_cohort, without_damaged
    from ketanet.compute import open_results, save
    from ketanet.connectivity import seed_maps
    from ketanet.degree import degree_map
    from ketanet.errors import InputError, KetanetError, KetanetWarning, StoreError
    from ketanet.grid import GrayordinateGrid, ParcelGrid, VolumeGrid
    from ketanet.group import network_difference, one_sample, threshold, two_sample
    from ketanet.inference import (
        bootstrap_studies,
        cohort_difference,
        compare_images,
        compare_maps,
        compare_with_maps,
        contrast_agreement,
        correlation_test,
        degree_control,
        direction_null,
        enough_people,
        fewer_studies,
        location_null,
        null_table,
        people_curve,
        replication_table,
        robustness_table,
        specificity,
    )
    from ketanet.ingest import (
        CiftiSource,
        Denoise,
        FmriprepSource,
        LacunaSource,
        LeadDbsSource,
        NiftiSource,
        NimlabSource,
        ParcelSource,
        XcpdParcelSource,
        XcpdSource,
        finish_parts,
        ingest_cohort,
        ingest_part,
        verify_sources,
    )
    from ketanet.labelling import atlas, canonical_shares, cluster_table, label
    from ketanet.networks import overlap, overlap_images
    from ketanet.planning import plan
    from ketanet.report import write_qc, write_report
    from ketanet.seeds import (
        load_seeds,
        mni_to_talairach,
        read_coordinates,
        seeds_from_coordinates,
        seeds_from_images,
        talairach_to_mni,
        write_seeds,
    )
    from ketanet.simulate import demo_grid, planted_network, simulate_cohort, simulate_coordinates
    from ketanet.study import load_study, run_demo, run_study

_HOME = {
    "cohort": ("cohort_info", "cohort_quality", "open_cohort", "select", "verify_cohort", "without_damaged"),
    "clusters": ("connect",),
    "compute": ("open_results", "save"),
    "connectivity": ("seed_maps",),
    "errors": ("InputError", "KetanetError", "KetanetWarning", "StoreError"),
    "grid": ("GrayordinateGrid", "ParcelGrid", "VolumeGrid"),
    "degree": ("degree_map",),
    "group": ("network_difference", "one_sample", "threshold", "two_sample"),
    "inference": (
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
        "location_null",
        "null_table",
        "people_curve",
        "replication_table",
        "robustness_table",
        "specificity",
    ),
    "ingest": (
        "CiftiSource",
        "Denoise",
        "FmriprepSource",
        "LacunaSource",
        "LeadDbsSource",
        "NiftiSource",
        "NimlabSource",
        "ParcelSource",
        "XcpdParcelSource",
        "XcpdSource",
        "finish_parts",
        "ingest_cohort",
        "ingest_part",
        "verify_sources",
    ),
    "labelling": ("atlas", "canonical_shares", "cluster_table", "label"),
    "batches": ("many_seeds",),
    "planning": ("plan",),
    "networks": ("overlap", "overlap_images"),
    "report": ("write_qc", "write_report"),
    "seeds": (
        "load_seeds",
        "mni_to_talairach",
        "read_coordinates",
        "seeds_from_coordinates",
        "seeds_from_images",
        "talairach_to_mni",
        "write_seeds",
    ),
    "simulate": ("demo_grid", "planted_network", "simulate_cohort", "simulate_coordinates"),
    "study": ("load_study", "run_demo", "run_study"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ketanet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ketanet.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
