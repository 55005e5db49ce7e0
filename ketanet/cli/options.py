"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Rule(StrEnum):
    fcnm = "fcnm"
    mm = "mm"


class Signal(StrEnum):
    mean = "mean"
    mean_standardised = "mean_standardised"
    pc1 = "pc1"


class Tail(StrEnum):
    positive = "positive"
    two_sided = "two-sided"


class Correction(StrEnum):
    fdr_bh_positive = "fdr_bh_positive"
    fdr_bh = "fdr_bh"
    fdr_by = "fdr_by"
    bonferroni = "bonferroni"
    fwe_max = "fwe_max"
    none = "none"


class SourceName(StrEnum):
    nifti = "nifti"
    fmriprep = "fmriprep"
    xcpd = "xcpd"
    xcpd_parcels = "xcpd-parcels"
    parcels = "parcels"
    cifti = "cifti"
    nimlab = "nimlab"
    leaddbs = "leaddbs"
    lacuna = "lacuna"


class Strategy(StrEnum):
    fcnm = "fcnm"
    simple = "simple"
    scrubbing = "scrubbing"
    compcor = "compcor"
    motion = "motion"


class Runs(StrEnum):
    concatenated = "concatenated"
    averaged = "averaged"


class Dtype(StrEnum):
    int16 = "int16"
    float32 = "float32"


Out = Annotated[Path, typer.Option("--out", help="Where the result goes.")]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster", help="threads, processes, a cluster file (site.toml), or the address of a Dask scheduler."
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads or processes; default: all cores.")]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", help="Memory allowed, such as 8GiB; default: what the machine has free.")
]
PerformanceReport = Annotated[
    Path | None,
    typer.Option("--performance-report", help="Page (HTML) about what the workers of a cluster did, and when."),
]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out people whose stored chunks are damaged or missing; all are read once."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
RadiusMm = Annotated[float, typer.Option("--radius-mm", help="Sphere radius in mm.")]
RuleOption = Annotated[Rule, typer.Option("--rule", help="fcnm: radius rounded to voxels, as published; mm: exact.")]
DirectionOption = Annotated[
    str | None, typer.Option("--direction", help="Direction of contrasts whose source does not say.")
]
Directions = Annotated[
    str | None,
    typer.Option("--directions", help="Directions allowed, such as up,down; default: increase,decrease."),
]
SpaceOption = Annotated[str | None, typer.Option("--space", help="MNI or Talairach, where the source does not say.")]
