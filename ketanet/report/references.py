"""What the text of a report cites."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ketanet.report.evidence import DIRECTION
from ketanet.report.results import Results


@dataclass(frozen=True)
class Reference:
    """A publication and its DOI."""

    text: str
    doi: str


METHOD: Final = Reference("Ma et al. 2026, European Psychiatry (the method)", "10.1192/j.eurpsy.2026.10164")
SPECIFICITY: Final = Reference(
    "van den Heuvel et al., Nature Neuroscience (what such maps do not show)", "10.1038/s41593-025-02196-7"
)
_LANCASTER = Reference("Lancaster et al. 2007, Human Brain Mapping 28:1194-1205 (icbm2tal)", "10.1002/hbm.20345")
_BH = Reference(
    "Benjamini and Hochberg 1995, Journal of the Royal Statistical Society B 57:289-300",
    "10.1111/j.2517-6161.1995.tb02031.x",
)
_BY = Reference("Benjamini and Yekutieli 2001, Annals of Statistics 29:1165-1188", "10.1214/aos/1013699998")
_DICE = Reference("Dice 1945, Ecology 26:297-302", "10.2307/1932409")
_TEMPLATE = Reference("Fonov et al. 2011, NeuroImage 54:313-327 (template)", "10.1016/j.neuroimage.2010.07.033")
_STOPS = {
    "besag_clifford": Reference("Besag and Clifford 1991, Biometrika 78:301-304", "10.1093/biomet/78.2.301"),
    "gandy": Reference(
        "Gandy 2009, Journal of the American Statistical Association 104:1504-1511", "10.1198/jasa.2009.tm08368"
    ),
}
_MONTE_CARLO = Reference(
    "Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39",
    "10.2202/1544-6115.1585",
)
_MAXIMUM = Reference("Nichols and Holmes 2002, Human Brain Mapping 15:1-25", "10.1002/hbm.1058")
_FLIPS = Reference("Winkler et al. 2014, NeuroImage 92:381-397", "10.1016/j.neuroimage.2014.01.060")
_BLOCKS = Reference("Winkler et al. 2015, NeuroImage 123:253-268", "10.1016/j.neuroimage.2015.05.092")
_WELCH = Reference("Welch 1947, Biometrika 34:28-35", "10.1093/biomet/34.1-2.28")
_JANSSEN = Reference("Janssen 1997, Statistics and Probability Letters 36:9-21", "10.1016/S0167-7152(97)00043-6")
_SURROGATES = Reference("Burt et al. 2020, NeuroImage 220:117038", "10.1016/j.neuroimage.2020.117038")
_DEGREE = Reference("Rubinov and Sporns 2011, NeuroImage 56:2068-2079", "10.1016/j.neuroimage.2011.03.069")
_BOOTSTRAP = Reference("Efron 1979, Annals of Statistics 7:1-26", "10.1214/aos/1176344552")


def references(results: Results) -> list[Reference]:
    """Publications that the methods text names, those of the atlas included."""
    found = [METHOD]
    if results.provenance["talairach_coordinates"]:
        found.append(_LANCASTER)
    correction = results.settings["group"]["correction"]
    if correction.startswith("fdr_bh"):
        found.append(_BH)
    elif correction == "fdr_by":
        found.append(_BY)
    for source in results.provenance["atlas"]["sources"]:
        match = re.fullmatch(r"(.*\S),? doi (10\.\S+)", source.get("reference", ""))
        if match:
            found.append(Reference(f"{match[1].rstrip(',')} (atlas)", match[2]))
    if len(results.robustness):
        found.append(_DICE)
    return list(dict.fromkeys([*found, *_of_evidence(results), _TEMPLATE, SPECIFICITY]))


def _of_evidence(results: Results) -> list[Reference]:
    evidence, found = results.evidence, []
    by_flips = results.settings["group"]["correction"] == "fwe_max"
    if by_flips:
        found += [_FLIPS, _MONTE_CARLO, _MAXIMUM]
    if evidence.nulls:
        found += [_MONTE_CARLO, _MAXIMUM]
    for null in evidence.location:
        stop = next(iter(evidence.nulls[null].values())).attrs["stop"]
        found += [_STOPS[stop]] if stop in _STOPS else []
    if DIRECTION in evidence.nulls:
        found += [_FLIPS, _BLOCKS]
    if evidence.specificity:
        found.append(_BLOCKS)
    if any(next(iter(evidence.nulls[n].values())).attrs["statistic"] == "welch" for n in evidence.specificity):
        found += [_WELCH, _JANSSEN]
    if evidence.degree_maps:
        found.append(_DEGREE)
    if evidence.degree is not None or evidence.table("maps") is not None:
        found.append(_SURROGATES)
    if evidence.bootstrap is not None:
        found.append(_BOOTSTRAP)
    return found
