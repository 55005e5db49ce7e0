"""Stopping a Monte Carlo test as soon as its outcome is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SPENT_HALF = 1000
"""Draws after which half of the resampling risk may be used up."""


def gandy_bounds(n: int, alpha: float, risk: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of exceedances at which a test is decided (Gandy 2009, doi 10.1198/jasa.2009.tm08368).

    Parameters
    ----------
    n : int
        Draws at most.
    alpha : float
        Level of the test.
    risk : float
        Largest probability of the other decision than that of all draws there could be, whatever the true p.

    Returns
    -------
    low, high : int arrays (draw,)
        After draw i (counted from one at position 0) the test is decided: p <= alpha with at most ``low[i]``
        exceedances (-1: not yet possible), p > alpha with at least ``high[i]``.
    """
    low, high = np.full(n, -1, np.int64), np.arange(2, n + 2)
    # probability of every number of exceedances, of those not decided yet, were the true p alpha
    share = np.array([1.0])
    start, spent_low, spent_high = 0, 0.0, 0.0
    for i in range(n):
        grown = np.append(share * (1 - alpha), 0.0)
        grown[1:] += share * alpha
        allowed = risk * (i + 1) / (_SPENT_HALF + i + 1)
        from_below = spent_low + np.cumsum(grown)
        from_above = spent_high + np.cumsum(grown[::-1])[::-1]
        few = int(np.searchsorted(from_below, allowed, side="right"))
        many = len(grown) - int(np.searchsorted(from_above[::-1], allowed, side="right"))
        low[i], high[i] = start + few - 1, start + many
        spent_low += float(grown[:few].sum())
        spent_high += float(grown[many:].sum())
        share, start = grown[few:many], start + few
        if not len(share):
            raise ValueError(f"a risk of {risk} decides every test after {i + 1} draws; it is far too large")
    return low, high


class Stopping:
    """Exceedances of many statistics in draws that come one after another, and which of the tests are decided.

    Parameters
    ----------
    rule : {"never", "besag_clifford", "gandy"}
        Besag and Clifford (1991, doi 10.1093/biomet/78.2.301): a test ends at its `hits`-th exceedance, after l draws,
        with p = hits / l. Gandy: a test is decided when the other decision at level `alpha` has a probability of at
        most `risk`. Draws may stop when all tests are decided.
    n_tests, n : int
        Tests, and draws at most.
    """

    def __init__(
        self, rule: str, n_tests: int, n: int, *, hits: int = 20, alpha: float = 0.05, risk: float = 1e-3
    ) -> None:
        self.rule, self.hits = rule, hits
        self.drawn = 0
        self.exceeded = np.zeros(n_tests, np.int64)
        self._ended = np.zeros(n_tests, np.int64)  # draw of the decision, from one; 0: none yet
        self._bounds = gandy_bounds(n, alpha, risk) if rule == "gandy" else None

    def add(self, exceeds: NDArray[np.bool_]) -> None:
        """Add the outcomes (draw, test) of further draws."""
        so_far = self.exceeded + np.cumsum(exceeds, axis=0, dtype=np.int64)
        if self.rule == "besag_clifford":
            decided = so_far >= self.hits
        elif self._bounds is not None:
            low, high = (b[self.drawn : self.drawn + len(exceeds), None] for b in self._bounds)
            decided = (so_far <= low) | (so_far >= high)
        else:
            decided = np.zeros(so_far.shape, bool)
        new = (self._ended == 0) & decided.any(axis=0)
        self._ended[new] = self.drawn + 1 + np.argmax(decided[:, new], axis=0)
        self.exceeded = so_far[-1] if len(so_far) else self.exceeded
        self.drawn += len(exceeds)

    def is_over(self, which: NDArray[np.bool_]) -> bool:
        """Whether all tests of `which` (test,) are decided."""
        return self.rule != "never" and bool((self._ended[which] > 0).all())

    def p_values(self) -> NDArray[np.float64]:
        """p of every test: (1 + exceedances) / (1 + draws), or hits / l where Besag and Clifford's rule ended it."""
        p = (1 + self.exceeded) / (1 + self.drawn)
        if self.rule == "besag_clifford":
            p = np.where(self._ended > 0, self.hits / np.maximum(self._ended, 1), p)
        return np.asarray(p, np.float64)
