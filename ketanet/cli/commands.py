"""The commands: each parses, calls one library function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ketanet import __version__
from ketanet.cli.app import STEPS, STUDIES, app
from ketanet.cli.connecting import connected
from ketanet.cli.options import (
    AsJson,
    Cluster,
    Correction,
    DirectionOption,
    Directions,
    MemoryLimit,
    Out,
    PerformanceReport,
    RadiusMm,
    Rule,
    RuleOption,
    Signal,
    SkipBad,
    SpaceOption,
    Tail,
    Workers,
)
from ketanet.cli.printing import print_facts, print_json, print_left_out, print_table


@app.command(rich_help_panel=STUDIES, epilog="Example: ketanet demo --out demo-output")
def demo(
    out: Out = Path("demo-output"),
    cluster: Cluster = "threads",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Run everything on a small cohort made on the spot.

    The networks that are found are compared with those planted in it.
    """
    from ketanet.study import run_demo

    with connected(cluster, workers):
        result = run_demo(out)
    if as_json:
        print_json({"report": str(result.report), "truth": result.truth.to_dict("records")})
        return
    print("\nPlanted networks and what was found:\n")
    print_table(result.truth)
    print(f"\nReport: {result.report}")


@app.command(rich_help_panel=STEPS, epilog="Example: ketanet seeds coordinates.tsv --grid healthy.zarr --out seeds")
def seeds(
    coordinates: Annotated[Path, typer.Argument(help="Coordinate table or folder.")],
    out: Out,
    grid: Annotated[Path, typer.Option("--grid", help="NIfTI mask or cohort store.")],
    radius_mm: RadiusMm = 4.0,
    rule: RuleOption = Rule.fcnm,
    directions: Directions = None,
    direction: DirectionOption = None,
    space: SpaceOption = None,
) -> None:
    """Make one NIfTI mask per contrast, and seeds.tsv."""
    from ketanet.cohort import grid_from_path
    from ketanet.seeds import load_seeds, write_seeds

    made = load_seeds(
        coordinates,
        grid_from_path(grid),
        radius_mm=radius_mm,
        rule=rule.value,
        directions=_allowed(coordinates, directions),
        direction=direction,
        space=space,
    )
    print(f"{write_seeds(made, out)}: {made.sizes['seed']} seeds")


@app.command("map", rich_help_panel=STEPS, epilog="Example: ketanet map healthy.zarr coordinates.tsv --out group.zarr")
def map_(
    cohort: Annotated[str, typer.Argument(help="Cohort store.")],
    seeds: Annotated[Path, typer.Argument(help="Coordinate table or folder, or folder of NIfTI masks.")],
    out: Out,
    radius_mm: RadiusMm = 4.0,
    rule: RuleOption = Rule.fcnm,
    signal: Annotated[Signal, typer.Option("--signal", help="Seed signal.")] = Signal.mean,
    mask: Annotated[Path | None, typer.Option("--mask", help="Test only in this NIfTI mask.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="Subjects, such as \"group == 'MDD'\".")] = None,
    tail: Annotated[Tail, typer.Option("--tail", help="Side that is tested.")] = Tail.positive,
    correction: Annotated[
        Correction, typer.Option("--correction", help="For testing so many places.")
    ] = Correction.fdr_bh_positive,
    alpha: Annotated[float, typer.Option("--alpha", help="Largest adjusted p that counts.")] = 0.05,
    covariate: Annotated[
        list[str] | None, typer.Option("--covariate", help="Column of the subjects to regress out; repeat for more.")
    ] = None,
    flips: Annotated[int, typer.Option("--flips", help="Sign flips of --correction fwe_max.")] = 1000,
    directions: Directions = None,
    direction: DirectionOption = None,
    space: SpaceOption = None,
    skip_bad: SkipBad = False,
    cluster: Cluster = "threads",
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    performance_report: PerformanceReport = None,
    as_json: AsJson = False,
) -> None:
    """Map every contrast in a cohort.

    The connectivity of its seed with all of the grid, tested over people.
    """
    from ketanet import storage
    from ketanet.cli.summaries import group_summary
    from ketanet.clusters.checking import require_visible
    from ketanet.cohort import open_cohort, select, without_damaged
    from ketanet.compute import save
    from ketanet.group import one_sample
    from ketanet.partials import partials_beside
    from ketanet.planning import plan
    from ketanet.seeds import load_seeds

    people = select(open_cohort(cohort), where)
    made = load_seeds(
        seeds,
        people,
        radius_mm=radius_mm,
        rule=rule.value,
        directions=_allowed(seeds, directions),
        direction=direction,
        space=space,
    )
    left_out: dict[str, str] = {}
    if skip_bad:
        people, left_out = without_damaged(people)
        print_left_out(left_out)
    group = one_sample(
        people,
        made,
        mask=mask,
        signal=signal.value,
        tail=tail.value,
        correction=correction.value,
        alpha=alpha,
        covariates=covariate or [],
        n_flips=flips,
        partials=partials_beside(out),
    )
    if skip_bad:
        group.attrs["left_out"] = left_out
    with connected(cluster, workers, performance_report) as connection:
        plan(group, workers=connection.workers).require(_bytes(memory_limit), of_worker=connection.memory)
        require_visible([str(people.attrs["store"])], out)
        save(group, out)
    found = group_summary(out)
    store = storage.address_of(out) if storage.is_remote(out) else str(out)
    if as_json:
        print_json({"store": store, "people": people.sizes["subject"], "contrasts": found.to_dict("records")})
        return
    print_table(found)
    print(f"\n{store}: {made.sizes['seed']} contrasts in {people.sizes['subject']} people")


@app.command(
    rich_help_panel=STEPS, epilog="Example: ketanet overlap group.zarr --direction increase --out network.nii.gz"
)
def overlap(
    maps: Annotated[list[Path], typer.Argument(help="A group store, or NIfTI masks, one per contrast.")],
    out: Out,
    direction: Annotated[str | None, typer.Option("--direction", help="Direction, where a store has two.")] = None,
    cohort: Annotated[str | None, typer.Option("--cohort", help="Cohort, where a store has several.")] = None,
    at_least: Annotated[float, typer.Option("--at-least", help="Smallest share of contrasts.")] = 0.6,
    min_cluster: Annotated[int, typer.Option("--min-cluster", help="Smallest cluster in voxels.")] = 30,
    connectivity: Annotated[int, typer.Option("--connectivity", help="6, 18 or 26.")] = 18,
) -> None:
    """Make the network that contrasts share.

    The network probability map, thresholded: values stay where the network is.
    """
    from ketanet.networks import save_overlap

    voxels = save_overlap(
        maps,
        out,
        direction=direction,
        cohort=cohort,
        at_least=at_least,
        min_cluster=min_cluster,
        connectivity=connectivity,
    )
    print(f"{out}: {voxels:,} voxels in the network")


@app.command(rich_help_panel=STEPS, epilog="Example: ketanet label network.nii.gz --atlas seitzman300 --out shares.tsv")
def label(
    map_image: Annotated[Path, typer.Argument(metavar="MAP", help="NIfTI map; nonzero voxels are the network.")],
    out: Out,
    atlas: Annotated[str, typer.Option("--atlas", help="yeo7+subcortical, seitzman300, or a NIfTI with names.")],
) -> None:
    """Tell which canonical networks a map covers.

    Writes the share of each, and a table of clusters beside it.
    """
    from ketanet.files import write_table
    from ketanet.labelling import label_image

    shares, clusters = label_image(map_image, atlas)
    beside = out.with_name(f"{out.stem}_clusters{out.suffix}")
    write_table(out, shares)
    write_table(beside, clusters)
    print_table(shares, ".3f")
    print(f"\n{out}, {beside}")


@app.command(rich_help_panel=STUDIES, epilog="Example: ketanet run study.toml --out results")
def run(
    study: Annotated[Path, typer.Argument(help="study.toml")],
    out: Out,
    force: Annotated[bool, typer.Option("--force", help="Replace another study's results in the folder.")] = False,
    skip_bad: SkipBad = False,
    cluster: Cluster = "threads",
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    performance_report: PerformanceReport = None,
    as_json: AsJson = False,
) -> None:
    """Run a study through all stages.

    Run again to resume: only what is missing or changed is computed.
    """
    from ketanet.cli.summaries import print_study, study_facts
    from ketanet.study import run_study

    with connected(cluster, workers, performance_report) as connection:
        folder = run_study(
            study,
            out,
            force=force,
            skip_bad=skip_bad,
            workers=connection.workers,
            memory_limit=_bytes(memory_limit),
            worker_memory=connection.memory,
        )
    if as_json:
        print_json(study_facts(folder))
    else:
        print_study(folder)


@app.command("null", rich_help_panel=STUDIES, epilog="Example: ketanet null study.toml --out results --n 1000")
def null_(
    study: Annotated[Path, typer.Argument(help="study.toml")],
    out: Out,
    n: Annotated[int | None, typer.Option("--n", help="Draws; more than before adds draws.")] = None,
    match: Annotated[str | None, typer.Option("--match", help="uniform, strength, or both with a comma.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the draws.")] = None,
    stop: Annotated[str | None, typer.Option("--stop", help="never, besag_clifford or gandy.")] = None,
    cluster: Cluster = "threads",
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    performance_report: PerformanceReport = None,
    as_json: AsJson = False,
) -> None:
    """Test a study's networks against chance.

    Places drawn at random, and directions exchanged. Like run, with the block [null] of the study file and these
    options in its place.
    """
    from ketanet.cli.summaries import null_facts, print_study
    from ketanet.study import run_study

    words = None if match is None else [word.strip() for word in match.split(",") if word.strip()]
    given = {"n": n, "match": words, "seed": seed, "stop": stop}
    with connected(cluster, workers, performance_report) as connection:
        folder = run_study(
            study,
            out,
            workers=connection.workers,
            memory_limit=_bytes(memory_limit),
            worker_memory=connection.memory,
            null={key: value for key, value in given.items() if value is not None},
        )
    if as_json:
        print_json(null_facts(folder))
    else:
        print_study(folder)


@app.command(rich_help_panel=STUDIES, epilog="Example: ketanet plan study.toml")
def plan(
    study: Annotated[Path, typer.Argument(help="study.toml")],
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a study will cost.

    Bytes, tasks, memory, disk, time. Refuses what would not fit.
    """
    from ketanet.study import plan_study

    found = plan_study(study, workers=workers)
    if as_json:
        print_json(found.to_json())
    else:
        print(found.describe())
    found.require(_bytes(memory_limit))


@app.command(rich_help_panel=STUDIES, epilog="Example: ketanet report results")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results of a run.")],
    figures_only: Annotated[
        bool, typer.Option("--figures-only", help="Write figures/ (PNG at 300 dpi, SVG), and leave the report.")
    ] = False,
) -> None:
    """Make report.html and figures/ again from what is stored."""
    from ketanet.cli.summaries import print_study
    from ketanet.report import write_figures, write_report

    if not figures_only:
        write_report(folder)
    figures = write_figures(folder)
    if not figures_only:
        print_study(folder)
    print(f"Figures: {figures}")


@app.command(rich_help_panel=STEPS, epilog="Example: ketanet compare a.nii.gz b.nii.gz")
def compare(
    a: Annotated[Path, typer.Argument(help="NIfTI map, or .dscalar.nii.")],
    b: Annotated[Path, typer.Argument(help="Map on the same lattice.")],
    n: Annotated[int, typer.Option("--n", min=0, help="Surrogates of A for the p of r; 0 leaves the p out.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the surrogates.")] = 0,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Compare over these voxels; without it r is over those nonzero in either map."),
    ] = None,
    surface: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--surface", help="Midthickness surfaces of .dscalar.nii maps, left and right (GIFTI)."),
    ] = None,
    cluster: Cluster = "threads",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Compare two maps.

    Dice of their nonzero voxels, their spatial correlation, and its p that respects their smoothness.
    """
    from dataclasses import asdict

    from ketanet.inference import compare_images

    with connected(cluster, workers):
        found = asdict(compare_images(a, b, n=n, seed=seed, mask=mask, surfaces=surface))
    if n == 0:
        del found["p"], found["n"]
    if as_json:
        print_json(found)
    else:
        print_facts(found)


@app.command(rich_help_panel=STUDIES, epilog="Example: ketanet clean results")
def clean(
    path: Annotated[
        str, typer.Argument(metavar="DIR", help="Results of a run, or a store (or its address), finished or not.")
    ],
) -> None:
    """Remove partial results; finished ones stay."""
    from ketanet import partials
    from ketanet.cohort import places
    from ketanet.lock import locked
    from ketanet.storage import is_remote

    if not (places.unfinished_objects if is_remote(path) else partials.unfinished)(path):
        print(f"{path}: nothing unfinished is there")
        return
    with locked(path):
        for entry in (places.clean_objects if is_remote(path) else partials.clean)(path):
            print(f"removed {entry}")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _allowed(source: Path, directions: str | None) -> list[str] | None:
    """Directions that a source of seeds may have: those named, else the usual two for coordinates, any for images."""
    from ketanet.seeds import holds_images

    if directions is not None:
        return [word.strip() for word in directions.split(",") if word.strip()]
    return None if holds_images(source) else ["increase", "decrease"]


def _bytes(text: str | None) -> int | None:
    from ketanet.planning import parse_size

    return None if text is None else parse_size(text)
