"""Charts of the shares of the canonical networks, for the page and for print."""

from __future__ import annotations

from ketanet.report.charts import FEWEST_ON_POLAR, MOST_ON_POLAR, draw_bars, draw_polar, draw_shares, share_limit
from ketanet.report.figures import Figure
from ketanet.report.results import Results
from ketanet.report.robustness_page import MOST_BARS

_Charted = tuple[list[str], dict[str, list[float]], float]


def share_figures(results: Results, cohort: str) -> list[Figure]:
    """Bars of the shares in a cohort, and where the networks fit on one, a polar chart."""
    names, shares, limit = charted = _charted(results, cohort)
    alt, caption = _words(results, cohort, charted)
    figures = [Figure(draw_bars(names, shares, limit), f"Bar chart {alt}", caption)]
    if _on_polar(names):
        polar = draw_polar(names, shares, limit)
        figures.append(Figure(polar, f"Polar chart {alt}", f"The same shares on a polar axis, cohort {cohort}."))
    return figures


def canonical_figure(results: Results, cohort: str) -> Figure:
    """Both charts of the shares in a cohort as one figure for print."""
    names, shares, limit = charted = _charted(results, cohort)
    alt, caption = _words(results, cohort, charted)
    kind = "Polar and bar chart" if _on_polar(names) else "Bar chart"
    name = "canonical-networks" if cohort == results.cohorts[0] else f"canonical-networks-{cohort}"
    return Figure(draw_shares(names, shares, limit), f"{kind} {alt}", caption, True, name)


def _on_polar(names: list[str]) -> bool:
    return FEWEST_ON_POLAR <= len(names) <= MOST_ON_POLAR


def _words(results: Results, cohort: str, charted: _Charted) -> tuple[str, str]:
    """Alternative text without its beginning, and caption."""
    total = results.canonical["network"].nunique()
    only = f" (the {MOST_BARS} covered most, of {total})" if total > len(charted[0]) else ""
    return (
        f"of the shares of the canonical networks in cohort {cohort}; the numbers are in tables/canonical.tsv.",
        f"Shares of the canonical networks, cohort {cohort}{only}.",
    )


def _charted(results: Results, cohort: str) -> _Charted:
    """Networks, their shares by direction, and the end of the axis: one scale and one choice for all cohorts."""
    table = results.canonical[results.canonical["cohort"] == cohort]
    most = results.canonical.groupby("network", sort=False)["share"].max().fillna(0)
    kept = set(most.nlargest(MOST_BARS, keep="first").index)
    names = [str(name) for name in most.index if name in kept]
    shares = {
        direction: table[table["direction"] == direction].set_index("network").loc[names, "share"].tolist()
        for direction in results.directions
    }
    return names, shares, share_limit(results.canonical["share"].tolist())
