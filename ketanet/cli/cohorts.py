"""Commands that make cohorts and look them over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ketanet.cli.app import COHORTS, app
from ketanet.cli.connecting import connected
from ketanet.cli.options import AsJson, Cluster, Dtype, Runs, SourceName, Strategy, Workers
from ketanet.cli.printing import print_facts, print_json, print_left_out
from ketanet.errors import InputError

if TYPE_CHECKING:
    from ketanet.ingest import PartDone
    from ketanet.ingest.run import Settings


@app.command(rich_help_panel=COHORTS, epilog="Example: ketanet simulate healthy.zarr --subjects 40")
def simulate(
    cohort: Annotated[Path, typer.Argument(help="Store to make.")],
    subjects: Annotated[int, typer.Option("--subjects", min=3, help="Number of people.")],
    like: Annotated[Path | None, typer.Option("--like", help="NIfTI mask or cohort store that gives the grid.")] = None,
    frames: Annotated[int, typer.Option("--frames", min=10, help="Frames per person.")] = 120,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random numbers.")] = 0,
    cluster: Cluster = "threads",
    workers: Workers = None,
) -> None:
    """Make a cohort with planted networks."""
    from ketanet.cohort import grid_from_path
    from ketanet.simulate import simulate_cohort

    grid = None if like is None else grid_from_path(like)
    with connected(cluster, workers):
        print(simulate_cohort(cohort, subjects=subjects, grid=grid, frames=frames, seed=seed))


# what a source takes, for `ingest` and `verify --sources` alike
Kind = Annotated[SourceName | None, typer.Option("--source", help="Kind of input.", rich_help_panel="Source")]
Pattern = Annotated[
    str | None,
    typer.Option("--pattern", help="Where the files lie, such as '{subject}/*.nii.gz'.", rich_help_panel="Source"),
]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="NIfTI mask: its nonzero voxels are kept.", rich_help_panel="Source")
]
Grid = Annotated[
    str | None,
    typer.Option("--grid", help="Resample onto a NIfTI mask, mni-2mm or mni-3mm.", rich_help_panel="Source"),
]
Atlas = Annotated[
    Path | None, typer.Option("--atlas", help="Label image of parcel time series.", rich_help_panel="Source")
]
Names = Annotated[
    Path | None,
    typer.Option(
        "--names", help="Names of the parcels: one a line, or a table with index and name.", rich_help_panel="Source"
    ),
]
Tr = Annotated[
    float | None,
    typer.Option("--tr", help="Repetition time in s, where files do not say.", rich_help_panel="Source"),
]
Space = Annotated[
    str | None,
    typer.Option("--space", help="Template space, such as MNI152NLin6Asym:res-2.", rich_help_panel="Source"),
]
Task = Annotated[str | None, typer.Option("--task", help="Task, such as rest.", rich_help_panel="Source")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--participant-label", help="Only these subjects; may be repeated.", rich_help_panel="Source"),
]
Entities = Annotated[
    list[str] | None,
    typer.Option("--entity", help="Only files with it, such as dir-AP; may be repeated.", rich_help_panel="Source"),
]
Share = Annotated[
    float | None,
    typer.Option("--share", help="Voxels in so many of the brain masks are kept, 0 to 1.", rich_help_panel="Source"),
]
Parcellation = Annotated[
    str | None, typer.Option("--parcellation", help="Name of XCP-D's atlas.", rich_help_panel="Source")
]
Confounds = Annotated[
    str | None,
    typer.Option("--confounds", help="Where confound tables lie, with {subject}.", rich_help_panel="Source"),
]
Surfaces = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--surface", help="Midthickness surfaces, left and right (GIFTI).", rich_help_panel="Source"),
]
Denoising = Annotated[
    Strategy | None,
    typer.Option("--denoise", help="Confounds to regress out, and what belongs to them.", rich_help_panel="Cleaning"),
]
NCompcor = Annotated[
    int | None,
    typer.Option(
        "--n-compcor", help="So many CompCor components, the strongest; default all.", rich_help_panel="Cleaning"
    ),
]
Detrend = Annotated[bool, typer.Option("--detrend", help="Remove a line.", rich_help_panel="Cleaning")]
Band = Annotated[
    str | None,
    typer.Option("--band", help="Band to keep in Hz, such as 0.01-0.1 (or 0.01-).", rich_help_panel="Cleaning"),
]
Fd = Annotated[
    float | None,
    typer.Option("--fd", help="Drop frames above this framewise displacement, mm.", rich_help_panel="Cleaning"),
]
Dvars = Annotated[
    float | None,
    typer.Option("--dvars", help="Drop frames above this standardised DVARS.", rich_help_panel="Cleaning"),
]
MinSegment = Annotated[
    int | None,
    typer.Option(
        "--min-segment", help="Drop stretches of fewer frames between those of motion.", rich_help_panel="Cleaning"
    ),
]
DropFirst = Annotated[
    int | None, typer.Option("--drop-first", help="Frames dropped at the start.", rich_help_panel="Cleaning")
]
MinFrames = Annotated[
    int | None, typer.Option("--min-frames", help="Fewest frames a subject keeps.", rich_help_panel="Cleaning")
]
Smooth = Annotated[
    float | None,
    typer.Option("--smooth", help="Smoothing within the mask, FWHM in mm.", rich_help_panel="Cleaning"),
]
GlobalSignal = Annotated[
    bool, typer.Option("--global-signal", help="Regress the mean over the grid.", rich_help_panel="Cleaning")
]
RunsOption = Annotated[
    Runs,
    typer.Option(
        "--runs", help="Several runs: concatenated, or correlated apart and averaged.", rich_help_panel="Cleaning"
    ),
]


@app.command(
    rich_help_panel=COHORTS, epilog="Example: ketanet ingest fmriprep healthy.zarr --source fmriprep --denoise fcnm"
)
def ingest(
    path: Annotated[str, typer.Argument(help="Folder, file, list of files (.txt) or address of the source.")],
    cohort: Annotated[str, typer.Argument(help="Store to make, or to add to with --append.")],
    source: Kind = None,
    pattern: Pattern = None,
    mask: Mask = None,
    grid: Grid = None,
    atlas: Atlas = None,
    names: Names = None,
    tr: Tr = None,
    space: Space = None,
    task: Task = None,
    participant_label: Labels = None,
    entity: Entities = None,
    share: Share = None,
    parcellation: Parcellation = None,
    confounds: Confounds = None,
    surface: Surfaces = None,
    denoise: Denoising = None,
    n_compcor: NCompcor = None,
    detrend: Detrend = False,
    band: Band = None,
    fd: Fd = None,
    dvars: Dvars = None,
    min_segment: MinSegment = None,
    drop_first: DropFirst = None,
    min_frames: MinFrames = None,
    smooth: Smooth = None,
    global_signal: GlobalSignal = False,
    runs: RunsOption = Runs.concatenated,
    participants: Annotated[Path | None, typer.Option("--participants", help="participants.tsv.")] = None,
    exclude: Annotated[
        str | None, typer.Option("--exclude", help='Leave out subjects, such as "age < 18 or mean_fd > 0.5".')
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="How rows are stored.")] = Dtype.int16,
    compress: Annotated[bool, typer.Option("--compress", help="Compress the chunks.")] = False,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", help="Room for later subjects of up to so many frames.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add subjects to a store that is there.")] = False,
    part: Annotated[
        str | None, typer.Option("--part", help="Take in one part only, such as 3/16; parts run at the same time.")
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="When all parts are in, make the store.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be used.")] = False,
    cluster: Cluster = "threads",
    workers: Workers = None,
) -> None:
    """Make a cohort of images, time series or another tool's data.

    Run again after an interruption, and it goes on.
    """
    from ketanet.ingest import finish_parts, ingest_cohort, ingest_part

    if (part is not None) + finish + append > 1:
        raise InputError("--part, --finish and --append exclude each other; give one of them")
    reader = _source(
        path,
        source,
        pattern=pattern,
        mask=mask,
        grid=grid,
        atlas=atlas,
        names=names,
        tr=tr,
        space=space,
        task=task,
        participants=participant_label,
        entities=_entities(entity),
        share=share,
        parcellation=parcellation,
        confounds=confounds,
        surface=surface,
    )
    cleaning = _cleaning(
        denoise,
        n_compcor=n_compcor,
        detrend=detrend or None,
        band_hz=band,
        fd_mm=fd,
        dvars=dvars,
        min_segment=min_segment,
        drop_first=drop_first,
        min_frames=min_frames,
        fwhm_mm=smooth,
        global_signal=global_signal or None,
        runs=runs.value,
    )
    settings: Settings = {
        "participants": participants,
        "exclude": exclude,
        "denoise": cleaning,
        "dtype": dtype.value,
        "compress": compress,
        "max_frames": max_frames,
        "skip_bad": skip_bad,
    }
    with connected(cluster, workers):
        if part is not None:
            _print_part(ingest_part(reader, cohort, part, **settings))
        elif finish:
            _print_made(finish_parts(reader, cohort, **settings))
        else:
            _print_made(ingest_cohort(reader, cohort, append=append, **settings))


def _print_made(store: Path | str) -> None:
    from ketanet.cohort import open_cohort

    made = open_cohort(store)
    print_left_out(made.attrs["provenance"]["skipped"])
    print(f"{store}: {made.sizes['subject']} subjects, {made.sizes['voxel']:,} grid elements")


def _print_part(done: PartDone) -> None:
    print_left_out(done.skipped)
    print(f"part {done.part}: {len(done.subjects)} subjects are in; --finish makes the store when all parts are")


def _source(path: str, kind: SourceName | None, **options: Any) -> Any:
    from ketanet.ingest.sources import source_of_kind

    if kind is None:
        raise InputError(f"say what {path} is: --source {', '.join(SourceName)}")
    return source_of_kind(kind.value, path, **options)


def _entities(words: list[str] | None) -> dict[str, str] | None:
    """``["dir-AP"]`` as ``{"dir": "AP"}``."""
    if not words:
        return None
    pairs = [word.partition("-") for word in words]
    for word, (key, _, value) in zip(words, pairs, strict=True):
        if not (key.isalnum() and value.isalnum()):
            raise InputError(f"--entity is {word!r}; write it as in file names, such as dir-AP")
    return {key: value for key, _, value in pairs}


def _cleaning(strategy: Strategy | None, *, band_hz: str | None, **changes: Any) -> Any:
    """Cleaning settings: those that belong to a strategy, with what was given besides."""
    from dataclasses import replace

    from ketanet.ingest import Denoise

    given = {key: value for key, value in changes.items() if value is not None}
    if band_hz is not None:
        given["band_hz"] = _band(band_hz)
    return replace(Denoise() if strategy is None else Denoise.named(strategy.value), **given)


def _band(text: str) -> tuple[float | None, float | None]:
    low, dash, high = text.partition("-")
    try:
        limits = tuple(float(part) if part.strip() else None for part in (low, high))
    except ValueError:
        limits, dash = (None, None), ""
    if not dash:
        raise InputError(f"--band is {text!r}; write two frequencies in Hz, such as 0.01-0.1")
    return limits[0], limits[1]


@app.command(rich_help_panel=COHORTS, epilog="Example: ketanet info healthy.zarr --qc --out qc")
def info(
    cohort: Annotated[str, typer.Argument(help="Cohort store.")],
    qc: Annotated[
        bool, typer.Option("--qc", help="Quality of the people; writes qc.tsv, qc.html and the group's coverage.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for what --qc writes.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Show what is in a cohort."""
    from ketanet.cohort import cohort_info, cohort_quality, open_cohort

    opened = open_cohort(cohort)
    if qc:
        from ketanet.report import write_qc

        quality = cohort_quality(opened)
        table, page, coverage = write_qc(opened, out, quality=quality)
        if as_json:
            print_json(
                {
                    "table": str(table),
                    "page": str(page),
                    "coverage": str(coverage),
                    "people": quality.table.to_dict("records"),
                    "left_out": quality.skipped,
                    "limits": quality.limits,
                    "notes": quality.notes,
                }
            )
        else:
            print(quality.summary())
            print(f"{table}, {page}, {coverage}")
        return
    facts = cohort_info(opened)
    if as_json:
        print_json(facts)
    else:
        print_facts(_readable(facts))


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts about a cohort with its size in words, and its columns by name."""
    from ketanet.planning import size_words

    facts = facts | {"columns": dict(sorted(facts["columns"].items()))}
    return {("size" if k == "bytes" else k): (size_words(v) if k == "bytes" else v) for k, v in facts.items()}


@app.command(rich_help_panel=COHORTS, epilog="Example: ketanet verify healthy.zarr")
def verify(
    cohort: Annotated[str, typer.Argument(help="Cohort store.")],
    sources: Annotated[
        str | None,
        typer.Option("--sources", help="Compare with the source instead: its path, with the options of ingest."),
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="So many people, drawn at random; default all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the drawing.")] = 0,
    source: Kind = None,
    pattern: Pattern = None,
    mask: Mask = None,
    grid: Grid = None,
    atlas: Atlas = None,
    names: Names = None,
    tr: Tr = None,
    space: Space = None,
    task: Task = None,
    participant_label: Labels = None,
    entity: Entities = None,
    share: Share = None,
    parcellation: Parcellation = None,
    confounds: Confounds = None,
    surface: Surfaces = None,
    cluster: Cluster = "threads",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of a cohort, or compare it with its source.

    Looks for wrong checksums, missing chunks, NaN, values out of range and flat voxels.
    """
    from ketanet.cohort import verify_cohort

    report: Any
    if sources is None:
        report = verify_cohort(cohort)
    else:
        from ketanet.ingest.verifying import verify_sources

        reader = _source(
            sources,
            source,
            pattern=pattern,
            mask=mask,
            grid=grid,
            atlas=atlas,
            names=names,
            tr=tr,
            space=space,
            task=task,
            participants=participant_label,
            entities=_entities(entity),
            share=share,
            parcellation=parcellation,
            confounds=confounds,
            surface=surface,
        )
        with connected(cluster, workers):
            report = verify_sources(cohort, reader, subjects=sample, seed=seed)
    if as_json:
        print_json(report.to_json())
    else:
        for problem in report.problems:
            print(problem)
        print(report.summary())
    if report.problems:
        raise InputError(f"{cohort}: {len(report.problems)} problems; restore the named chunks or ingest again")
