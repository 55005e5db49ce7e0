"""The pipeline of a study with its numbers, as boxes and arrows: the first figure of a paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ketanet.report.charts import DIRECTION_COLOURS, axis_text
from ketanet.report.figures import PAGE_WIDTH_MM, Figure, png, sheet
from ketanet.report.findings import null_words
from ketanet.report.results import Results, rows_of
from ketanet.report.words import count, fixed, listed, percent, share

_ROWS: Final = ((0, 1, 2, 3), (4, 5, 6), (7,))  # boxes of each row; the last is not a step but tests them
_GAP: Final = 6.0  # mm, with an arrow in it
_BETWEEN: Final = 8.0  # mm between the rows
_PAD: Final = 2.0
_TITLE: Final = 5.2  # mm of a title
_LINE: Final = 3.7  # mm of a line of text
_BASE: Final = 2.7  # mm from the top of a line to its base
_MARK: Final = 3.0  # mm for the colour of a direction
_TEXT: Final = 7.5  # points
_COLUMNS: Final = 3  # of the box that tests
_MOST: Final = 5  # directions and cohorts that are told apart
_POSITIVE: Final = "t\u00a0>\u00a00"  # stays on one line
_CORRECTIONS: Final = {
    "fdr_bh_positive": f"FDR over {_POSITIVE}",
    "fdr_bh": "FDR (Benjamini-Hochberg)",
    "fdr_by": "FDR (Benjamini-Yekutieli)",
    "bonferroni": "Bonferroni",
    "fwe_max": "family-wise, sign flips",
    "none": "uncorrected",
}
_FILL: Final = "#f3f5f7"
_EDGE: Final = "0.45"


@dataclass(frozen=True)
class Line:
    """A line of a box, and the number of the direction whose colour marks it."""

    text: str
    direction: int | None = None


@dataclass(frozen=True)
class Box:
    """A step of the pipeline."""

    title: str
    lines: list[Line]


def pipeline_figure(results: Results) -> Figure:
    """The pipeline with the numbers of a study: from source studies to networks, and how they were tested."""
    boxes = pipeline_boxes(results)
    words = "; ".join(f"{box.title}: {', '.join(line.text for line in box.lines)}" for box in boxes)
    caption = f"The pipeline of the study {results.settings['name']}, with its numbers."
    return Figure(png(_draw(boxes)), f"Flow chart. {words}.", caption, True, "pipeline")


def pipeline_boxes(results: Results) -> list[Box]:
    """The steps with their numbers, in order."""
    return [
        Box("Source studies", _sources(results)),
        Box("Seeds", _seeds(results)),
        Box("Connectivity", _cohorts(results)),
        Box("Contrast maps", _tests(results)),
        Box("Probability map", _probability(results)),
        Box("Networks", _networks(results)),
        Box("Canonical networks", _canonical(results)),
        Box("Evidence", _evidence(results)),
    ]


def _plain(*texts: str) -> list[Line]:
    return [Line(text) for text in texts if text]


def _by_direction(results: Results, words: Any) -> list[Line]:
    """A line for each direction, and how many more there are."""
    shown = results.directions[:_MOST]
    lines = [Line(f"{axis_text(d)}: {words(d)}", number) for number, d in enumerate(shown)]
    return lines + _plain(f"and {len(results.directions) - _MOST} more" if len(results.directions) > _MOST else "")


def _sources(results: Results) -> list[Line]:
    seeds = results.seeds
    main = results.cohorts[0]
    contrasts = _by_direction(results, lambda d: count(results.of(main, d).n_contrasts, "contrast"))
    coordinates = count(seeds["n_coordinates"].sum(), "coordinate") if results.from_coordinates else "given as images"
    foreign = results.provenance.get("talairach_coordinates", 0)
    return [
        *_plain(count(seeds["source_study"].nunique(), "source study")),
        *contrasts,
        *_plain(coordinates, f"{foreign:,} brought from Talairach to MNI" if foreign else ""),
    ]


def _seeds(results: Results) -> list[Line]:
    settings = results.settings["seeds"]
    signal = {
        "mean": "signal: mean of the series",
        "mean_standardised": "signal: mean of standardised series",
        "pc1": "signal: first principal component",
    }[settings["signal"]]
    many = count(len(results.seeds), "seed") + ", one a contrast"
    if not results.from_coordinates:
        return _plain(many, "weights: the images", signal)
    rule = {"fcnm": "rounded to voxels", "mm": "around the exact place"}[settings["rule"]]
    return _plain(many, f"spheres of {settings['radius_mm']:g} mm, {rule}, merged", signal)


def _cohorts(results: Results) -> list[Line]:
    lines = []
    for name, facts in list(results.provenance["cohorts"].items())[:_MOST]:
        low, high = facts["frames"]
        frames = f"{low}–{high}" if low != high else f"{low}"
        tr = "/".join(f"{t:g}" for t in facts["tr_s"])
        lines.append(f"{axis_text(name)}: {count(facts['subjects'], 'person')}, {frames} frames, TR\u00a0{tr}\u00a0s")
    more = len(results.provenance["cohorts"]) - _MOST
    elements = count(results.grid.n_voxels, results.element)
    return _plain(*lines, f"and {more} more" if more > 0 else "", f"Pearson r with {elements}, Fisher z")


def _tests(results: Results) -> list[Line]:
    group = results.settings["group"]
    tail = {"positive": f"one-sided, {_POSITIVE}", "two-sided": "two-sided"}[group["tail"]]
    covariates = group.get("covariates") or []
    return _plain(
        "one-sample t over people",
        f"adjusted for {listed(covariates)}" if covariates else "",
        tail,
        f"{_CORRECTIONS[group['correction']]}, α = {group['alpha']:g}",
    )


def _probability(results: Results) -> list[Line]:
    sign = {
        "positive": f"significant, {_POSITIVE}",
        "negative": "significant, t\u00a0<\u00a00",
        "any": "significant, either sign",
    }
    where = sign[results.rule.get("sign", "positive")]
    return _plain("each direction apart", f"share of the contrasts whose map is {where}")


def _networks(results: Results) -> list[Line]:
    main = results.cohorts[0]
    extent = str(results.rule["extent"])
    bound = "no bound on clusters" if extent.startswith("off") else f"clusters of ≥ {extent}"
    sizes = _by_direction(results, lambda d: count(results.of(main, d).voxels, results.place))
    return [*_plain(f"≥ {share(results.rule['at_least'])} of the contrasts", bound), *sizes]


def _canonical(results: Results) -> list[Line]:
    def most(direction: str) -> str:
        own = rows_of(results.canonical, results.of(results.cohorts[0], direction)).dropna(subset="share")
        if own.empty or own["share"].max() == 0:
            return "none"
        top = own.loc[own["share"].idxmax()]
        return f"{axis_text(top['network'])} {percent(top['share'])}"

    return [
        *_plain(f"{results.canonical['network'].nunique()} networks; covered most"),
        *_by_direction(results, most),
    ]


def _evidence(results: Results) -> list[Line]:
    evidence, lines = results.evidence, []
    for null, own in evidence.nulls.items():
        draws = int(own[results.cohorts[0]].attrs.get("n", 0))
        what = axis_text(null_words(null))
        lines.append(f"{what}: {draws:,}\u00a0draws" if draws else what)
    if evidence.degree is not None:
        lines.append("degree of the connectome")
    settings = results.robustness[~results.robustness["analysis"].isin(["leave_one_study_out", "cohort"])]
    variants = len(settings.drop_duplicates(["analysis", "parameter"]))
    if variants:
        lines.append(f"{count(variants, 'other setting')}")
    if (results.robustness["analysis"] == "leave_one_study_out").any():
        lines.append("each source study left out")
    if evidence.bootstrap is not None:
        lines.append(f"bootstrap: {count(int(evidence.bootstrap.attrs['n']), 'sample')}")
    lines += [_again(results, name) for name in results.cohorts[1:][:_MOST]]
    return _plain(*lines) or _plain("none was computed")


def _again(results: Results, cohort: str) -> str:
    table = results.robustness
    own = table[(table["analysis"] == "cohort") & (table["parameter"] == cohort)].dropna(subset="dice")
    return f"again in {axis_text(cohort)}" + (f": Dice {listed(fixed(d) for d in own['dice'])}" if len(own) else "")


def _wrapped(box: Box, room: float, measure: Callable[[str], float]) -> list[Line]:
    """Lines that fit a room in mm; the words of a marked line that do not fit go on below them, marked -1."""
    lines = []
    for line in box.lines:
        own = room - (_MARK if line.direction is not None else 0)
        parts = [""]
        words = [piece for word in line.text.split(" ") for piece in _pieces(word, own, measure)]
        for word in words:
            longer = f"{parts[-1]} {word}".strip(" ")
            if parts[-1] and measure(longer) > own:
                parts.append(word)
            else:
                parts[-1] = longer
        rest = None if line.direction is None else -1
        lines += [Line(part, line.direction if k == 0 else rest) for k, part in enumerate(parts)]
    return lines


def _pieces(word: str, room: float, measure: Callable[[str], float]) -> list[str]:
    """A word in pieces that fit a room; nearly always one."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and measure(word) > room and measure(pieces[-1] + letter) > room:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _measure() -> Callable[[str], float]:
    """Width in mm of a line of text."""
    from matplotlib.font_manager import FontProperties

    canvas, font = sheet(10, 10).canvas, FontProperties(size=_TEXT)
    renderer = canvas.get_renderer()
    return lambda text: renderer.get_text_width_height_descent(text, font, False)[0] / renderer.dpi * 25.4


def _draw(boxes: list[Box]) -> Any:
    measure = _measure()
    widths = [(PAGE_WIDTH_MM - 1 - (len(row) - 1) * _GAP) / len(row) for row in _ROWS]
    wrapped = []
    for row, width in zip(_ROWS, widths, strict=True):
        columns = _COLUMNS if len(row) == 1 else 1
        wrapped += [_wrapped(boxes[k], (width - 2 * _PAD) / columns - _PAD * (columns > 1), measure) for k in row]
    many = [
        max(len(wrapped[k]) for k in row) if len(row) > 1 else -(-len(wrapped[row[0]]) // _COLUMNS) for row in _ROWS
    ]
    heights = [2 * _PAD + _TITLE + _LINE * lines for lines in many]
    tall = sum(heights) + _BETWEEN * (len(_ROWS) - 1) + 1
    figure = sheet(PAGE_WIDTH_MM, tall)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, PAGE_WIDTH_MM), ylim=(tall, 0))
    axes.set_axis_off()
    top = 0.5
    for line, (row, width, height) in enumerate(zip(_ROWS, widths, heights, strict=True)):
        for column, number in enumerate(row):
            left = 0.5 + column * (width + _GAP)
            columns = _COLUMNS if len(row) == 1 else 1
            _box(axes, (left, top, width, height), f"{number + 1}  {boxes[number].title}", wrapped[number], columns)
            if column:
                _arrow(axes, [(left - _GAP, top + height / 2), (left, top + height / 2)])
        top += height + _BETWEEN
        if line == 0:
            right, middle = PAGE_WIDTH_MM - 0.5 - width / 2, top - _BETWEEN / 2
            first = 0.5 + widths[1] / 2
            _arrow(axes, [(right, top - _BETWEEN), (right, middle), (first, middle), (first, top)])
        elif line == 1:
            for column in range(len(row)):
                x = 0.5 + column * (width + _GAP) + width / 2
                _arrow(axes, [(x, top), (x, top - _BETWEEN)])
    return figure


def _box(axes: Any, at: tuple[float, float, float, float], title: str, lines: list[Line], columns: int) -> None:
    """A box of a title and lines, in columns one after the other."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    left, top, width, height = at
    shape = "round,pad=0,rounding_size=1.5"
    axes.add_patch(
        FancyBboxPatch((left, top), width, height, boxstyle=shape, facecolor=_FILL, edgecolor=_EDGE, linewidth=0.8)
    )
    axes.text(left + _PAD, top + _PAD + _BASE, title, fontsize=8.5, fontweight="bold")
    each = max(-(-len(lines) // columns), 1)
    for k, line in enumerate(lines):
        y = top + _PAD + _TITLE + k % each * _LINE
        x = left + _PAD + k // each * (width - 2 * _PAD) / columns
        if line.direction is not None:
            if line.direction >= 0:
                colour = DIRECTION_COLOURS[line.direction % len(DIRECTION_COLOURS)]
                axes.add_patch(Rectangle((x, y + _BASE - 2), 2, 2, facecolor=colour, edgecolor="none"))
            x += _MARK
        axes.text(x, y + _BASE, line.text, fontsize=_TEXT)


def _arrow(axes: Any, corners: list[tuple[float, float]]) -> None:
    """An arrow along corners, its head at the last."""
    across, down = zip(*corners[:-1], strict=True)
    axes.plot(across, down, color=_EDGE, linewidth=1.2, solid_capstyle="butt", solid_joinstyle="miter")
    style = {"arrowstyle": "-|>", "color": _EDGE, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.annotate("", corners[-1], corners[-2], arrowprops=style)
