"""The evidence that a study asks for: whether it can be had, and what it costs."""

from __future__ import annotations

from ketanet.batches import SMALL_GRID
from ketanet.connectivity import row_bytes
from ketanet.errors import InputError
from ketanet.group import PassSize
from ketanet.inference.conditions import check_specificity
from ketanet.inference.direction import check_direction_null
from ketanet.inference.draws import check_draws
from ketanet.inference.location import null_batch
from ketanet.inference.surrogates import FEWEST_ELEMENTS
from ketanet.planning import DrawsSize
from ketanet.study.inputs import Inputs


def check_evidence(inputs: Inputs) -> None:
    """Raise an InputError where evidence that the study asks for cannot be had; nothing is computed."""
    study, null = inputs.study, inputs.study.null
    for asked, what in ((null and null.match, "null.match"), (study.robustness.people, "robustness.people")):
        if asked and (study.group.covariates or study.group.correction == "fwe_max"):
            reason = "group.covariates" if study.group.covariates else "group.correction 'fwe_max'"
            raise InputError(
                f"{what} maps people many times over, without {reason}, so its maps would not be the study's; empty "
                f"{what}, or leave {reason} out"
            )
    if study.robustness.cohort_difference and (study.group.covariates or len(inputs.cohorts) < 2):
        reason = "needs a second cohort" if len(inputs.cohorts) < 2 else "does not go with group.covariates"
        raise InputError(f"robustness.cohort_difference {reason}; set it to false")
    if null is not None:
        check_draws(inputs.main, match=null.match, mask=inputs.grey, within=null.within)
        if null.direction and len(inputs.directions) == 2:
            check_direction_null(inputs.main, directions=inputs.directions, n=null.n, seed=null.seed)
    for name, settings in study.specificity.items():
        check_specificity(
            inputs.main,
            inputs.variants[f"control-{name}"].seeds,
            n=settings.n,
            seed=settings.seed,
            directions=inputs.directions,
            allow_shared_studies=settings.allow_shared_studies,
        )
    for size in study.robustness.people:
        people = next(iter(inputs.cohorts.values())).sizes["subject"]
        if size >= people:
            raise InputError(
                f"robustness.people holds {size}; the discovery cohort has {people} people, and a subset has fewer"
            )
    elements = inputs.grid.n_voxels if inputs.mask is None else int(inputs.mask.sum())
    if (study.degree or study.maps) and elements < FEWEST_ELEMENTS:
        raise InputError(
            f"{elements} grid elements are tested; surrogates that keep smoothness ([degree], [maps]) need at least "
            f"{FEWEST_ELEMENTS}: leave these blocks out"
        )
    if study.maps is not None:
        for file in study.maps.files.values():
            inputs.grid.load_on_lattice(file)


def draws_sizes(inputs: Inputs) -> list[DrawsSize]:
    """What the cost of the location nulls follows from, one for each match and cohort."""
    null = inputs.study.null
    if null is None:
        return []
    contrasts, voxels = inputs.main.sizes["seed"], inputs.grid.n_voxels
    targets = voxels if inputs.mask is None else int(inputs.mask.sum())
    made = []
    for cohort in inputs.cohorts.values():
        whole = PassSize(
            people=int(cohort.sizes["subject"]),
            seeds=null.n * contrasts,
            targets=targets,
            voxels=voxels,
            frames=int(cohort.sizes["time"]),
            row_bytes=row_bytes(cohort),
        )
        kept = -(-2 * len(inputs.directions) * targets // contrasts)
        made.append(
            DrawsSize(whole, null_batch(contrasts, targets) * contrasts, 1 if voxels <= SMALL_GRID else 2, kept)
        )
    return made * len(null.match)
