"""The whole way on a small cohort made on the spot, checked against the networks planted in it."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ketanet.compute import open_results
from ketanet.inference import compare_maps
from ketanet.simulate import demo_grid, planted_network, simulate_cohort, simulate_coordinates
from ketanet.study.run import run_study

log = logging.getLogger("ketanet")

STUDY = Path(__file__).with_name("demo.toml")
PLANTED = {"increase": "CinguloOpercular", "decrease": "DefaultMode"}
HEALTHY, PATIENTS, FRAMES, SEED = 40, 20, 120, 2026


@dataclass(frozen=True)
class DemoResult:
    """Results folder of the demo, and a table of planted against found networks."""

    folder: Path
    truth: pd.DataFrame

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run_demo(out: str | os.PathLike[str]) -> DemoResult:
    """Simulate two cohorts and a coordinate table, run a study on them, compare with the truth.

    Parameters
    ----------
    out : path
        Folder to fill: ``inputs/`` and ``results/``. Cohorts that are there already are used again.

    Returns
    -------
    DemoResult
    """
    inputs, results = Path(out) / "inputs", Path(out) / "results"
    inputs.mkdir(parents=True, exist_ok=True)
    grid = demo_grid()
    for name, people, strength, seed in (
        ("healthy", HEALTHY, 0.7, SEED),
        ("patients", PATIENTS, 0.6, SEED + 1),
    ):
        if not (inputs / f"{name}.zarr").exists():
            log.info("simulating %d %s, %d frames, %d voxels", people, name, FRAMES, grid.n_voxels)
            simulate_cohort(
                inputs / f"{name}.zarr",
                subjects=people,
                grid=grid,
                frames=FRAMES,
                seed=seed,
                strength=strength,
            )
    table = simulate_coordinates(grid, PLANTED, seed=SEED)
    table.to_csv(inputs / "coordinates.tsv", sep="\t", index=False)
    shutil.copyfile(STUDY, inputs / "study.toml")
    run_study(inputs / "study.toml", results)
    networks = open_results(results / "networks.zarr").compute()
    rows = []
    for cohort in networks["cohort"].values:
        for direction, name in PLANTED.items():
            found = networks.sel(cohort=cohort, direction=direction)
            truth = planted_network(grid, name)
            agreement = compare_maps(truth, found["network"], truth, found["probability"], grid.painted)
            rows.append(
                {
                    "cohort": str(cohort),
                    "direction": direction,
                    "planted": name,
                    "voxels_planted": agreement.voxels_a,
                    "voxels_found": agreement.voxels_b,
                    "dice": agreement.dice,
                }
            )
    return DemoResult(results, pd.DataFrame(rows))
