"""Pictures of the networks of a study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ketanet.errors import InputError
from ketanet.files import disk_errors
from ketanet.report.figures import Image
from ketanet.report.results import Network, Results, load_results
from ketanet.report.slices import Row, Slice, choose_slices, draw, picture_words
from ketanet.report.words import count, share

SCALE = "share of the contrasts"


def network_rows(results: Results, planes: Sequence[Slice], network: Network) -> Image:
    """PNG of one network: its probability map above, the network below."""
    rows = [
        Row(f"Probability map: share of the contrasts that cover a {results.element}", network.probability),
        Row(
            f"Network: at least {share(results.rule['at_least'])} of the contrasts",
            np.where(network.inside, network.probability, np.float32(0)),
        ),
    ]
    return draw(planes, rows, scale=SCALE, mark=results.rule["at_least"])


def network_picture(folder: str | os.PathLike[str], path: str | os.PathLike[str], cohort: str | None = None) -> Path:
    """Draw the networks of all directions of a study in one picture, for a paper or a README.

    Each direction is a row of slices over the MNI152 template, left on the left, all with one colour scale from 0 to 1.
    The network is outlined; the probability map around it fades.

    Parameters
    ----------
    folder : path
        Results of a study.
    path : path
        PNG image to write, two pixels a millimetre.
    cohort : str, optional
        Default: the study's first.

    Returns
    -------
    pathlib.Path
        The image.

    Raises
    ------
    InputError
        The folder does not hold finished results, the study has no such cohort, or its grid has no place in an image.
    """
    results, out = load_results(folder), Path(path)
    name = results.cohorts[0] if cohort is None else cohort
    if name not in results.cohorts:
        raise InputError(f"{folder}: there is no cohort {name!r}; there are: {', '.join(results.cohorts)}")
    networks = [results.of(name, direction) for direction in results.directions]
    planes = choose_slices(results.grid, networks)
    if not planes:
        raise InputError(f"{folder}: no picture of the networks; {picture_words(results.grid)}")
    rows = [Row(f"{n.direction} ({count(n.n_contrasts, 'contrast')})", n.probability, n.inside) for n in networks]
    image = draw(planes, rows, scale=SCALE, mark=results.rule["at_least"], zoom=2)
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        partial.write_bytes(image)
        partial.replace(out)
    return out
