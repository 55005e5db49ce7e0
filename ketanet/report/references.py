"""What the text of a report cites."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ketanet.report.evidence import DIRECTION
from ketanet.report.results import Results


@dataclass(frozen=True)
class Reference:
    """A publication: who and when, what it is called, where it stands, its DOI; `why` it is cited, where not plain."""

    authors: str
    year: int | None
    title: str
    where: str
    doi: str
    why: str = ""

    @property
    def text(self) -> str:
        """What stands in a list of references, but the DOI."""
        who = f"{self.authors} {self.year}" if self.year else self.authors
        return ". ".join(part.rstrip(".") for part in (who, self.title, self.where) if part) + (
            f" ({self.why})" if self.why else ""
        )

    def bibtex(self, key: str) -> str:
        """A BibTeX entry."""
        journal, _, place = self.where.rpartition(" ") if re.search(r"\d", self.where) else (self.where, "", "")
        volume, _, pages = place.partition(":")
        fields = {
            "author": self.authors.replace(" et al.", " and others"),
            "year": str(self.year or ""),
            "title": f"{{{self.title}}}" if self.title else "",
            "journal": journal,
            "volume": volume,
            "pages": pages.replace("-", "--"),
            "doi": self.doi,
        }
        rows = [f"  {name} = {{{_latex(value)}}}," for name, value in fields.items() if value]
        return "\n".join([f"@article{{{key},", *rows, "}"])


METHOD: Final = Reference("Ma et al.", 2026, "", "European Psychiatry", "10.1192/j.eurpsy.2026.10164", "the method")
SPECIFICITY: Final = Reference(
    "van den Heuvel et al.", None, "", "Nature Neuroscience", "10.1038/s41593-025-02196-7", "what such maps do not show"
)
_LANCASTER = Reference(
    "Lancaster et al.",
    2007,
    "Bias between MNI and Talairach coordinates analyzed using the ICBM-152 brain template",
    "Human Brain Mapping 28:1194-1205",
    "10.1002/hbm.20345",
    "icbm2tal",
)
_BH = Reference(
    "Benjamini and Hochberg",
    1995,
    "Controlling the false discovery rate: a practical and powerful approach to multiple testing",
    "Journal of the Royal Statistical Society B 57:289-300",
    "10.1111/j.2517-6161.1995.tb02031.x",
)
_BY = Reference(
    "Benjamini and Yekutieli",
    2001,
    "The control of the false discovery rate in multiple testing under dependency",
    "Annals of Statistics 29:1165-1188",
    "10.1214/aos/1013699998",
)
_DICE = Reference(
    "Dice",
    1945,
    "Measures of the amount of ecologic association between species",
    "Ecology 26:297-302",
    "10.2307/1932409",
)
_TEMPLATE = Reference(
    "Fonov et al.",
    2011,
    "Unbiased average age-appropriate atlases for pediatric studies",
    "NeuroImage 54:313-327",
    "10.1016/j.neuroimage.2010.07.033",
    "template",
)
_SURFACE = Reference(
    "Fischl et al.",
    1999,
    "High-resolution intersubject averaging and a coordinate system for the cortical surface",
    "Human Brain Mapping 8:272-284",
    "10.1002/(SICI)1097-0193(1999)8:4<272::AID-HBM10>3.0.CO;2-4",
    "fsaverage",
)
_STOPS = {
    "besag_clifford": Reference(
        "Besag and Clifford",
        1991,
        "Sequential Monte Carlo p-values",
        "Biometrika 78:301-304",
        "10.1093/biomet/78.2.301",
    ),
    "gandy": Reference(
        "Gandy",
        2009,
        "Sequential implementation of Monte Carlo tests with uniformly bounded resampling risk",
        "Journal of the American Statistical Association 104:1504-1511",
        "10.1198/jasa.2009.tm08368",
    ),
}
_MONTE_CARLO = Reference(
    "Phipson and Smyth",
    2010,
    "Permutation P-values should never be zero: calculating exact P-values when permutations are randomly drawn",
    "Statistical Applications in Genetics and Molecular Biology 9:39",
    "10.2202/1544-6115.1585",
)
_MAXIMUM = Reference(
    "Nichols and Holmes",
    2002,
    "Nonparametric permutation tests for functional neuroimaging: a primer with examples",
    "Human Brain Mapping 15:1-25",
    "10.1002/hbm.1058",
)
_FLIPS = Reference(
    "Winkler et al.",
    2014,
    "Permutation inference for the general linear model",
    "NeuroImage 92:381-397",
    "10.1016/j.neuroimage.2014.01.060",
)
_BLOCKS = Reference(
    "Winkler et al.",
    2015,
    "Multi-level block permutation",
    "NeuroImage 123:253-268",
    "10.1016/j.neuroimage.2015.05.092",
)
_WELCH = Reference(
    "Welch",
    1947,
    "The generalization of 'Student's' problem when several different population variances are involved",
    "Biometrika 34:28-35",
    "10.1093/biomet/34.1-2.28",
)
_JANSSEN = Reference(
    "Janssen",
    1997,
    "Studentized permutation tests for non-i.i.d. hypotheses and the generalized Behrens-Fisher problem",
    "Statistics and Probability Letters 36:9-21",
    "10.1016/S0167-7152(97)00043-6",
)
_SURROGATES = Reference(
    "Burt et al.",
    2020,
    "Generative modeling of brain maps with spatial autocorrelation",
    "NeuroImage 220:117038",
    "10.1016/j.neuroimage.2020.117038",
)
_DEGREE = Reference(
    "Rubinov and Sporns",
    2011,
    "Weight-conserving characterization of complex functional brain networks",
    "NeuroImage 56:2068-2079",
    "10.1016/j.neuroimage.2011.03.069",
)
_BOOTSTRAP = Reference(
    "Efron",
    1979,
    "Bootstrap methods: another look at the jackknife",
    "Annals of Statistics 7:1-26",
    "10.1214/aos/1176344552",
)


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
            found.append(_of_atlas(match[1].rstrip(","), match[2]))
    if len(results.robustness):
        found.append(_DICE)
    return list(dict.fromkeys([*found, *_of_evidence(results), _TEMPLATE, _SURFACE, SPECIFICITY]))


def bibtex(results: Results) -> str:
    """All references of a study and the software as one block of BibTeX."""
    entries, taken = [], set[str]()
    for reference in references(results):
        name = re.sub(r"[^a-z]", "", reference.authors.split(" and ")[0].replace(" et al.", "").lower())
        stem = f"{name}{reference.year or ''}"
        key = next(k for k in (stem, *(f"{stem}{c}" for c in "bcdefghijklmnop")) if k not in taken)
        taken.add(key)
        entries.append(reference.bibtex(key))
    number = results.provenance["ketanet"]
    entries.append(
        "@software{ketanet,\n  author = {{The ketanet developers}},\n"
        "  title = {{ketanet: functional connectivity network mapping}},\n"
        f"  version = {{{number}}},\n}}"
    )
    return "\n".join(entries)


def _of_atlas(words: str, doi: str) -> Reference:
    match = re.fullmatch(r"(.+?),? (\d{4})(.*)", words)
    if match is None:
        return Reference(words, None, "", "", doi, "atlas")
    return Reference(match[1], int(match[2]), "", match[3].strip(" ,."), doi, "atlas")


def _latex(text: str) -> str:
    return re.sub(r"([&%$#_])", r"\\\1", text)


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
