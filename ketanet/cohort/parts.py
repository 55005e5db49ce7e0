"""Writing a cohort in parts: processes that know nothing of each other, on any machines, fill one unfinished store.

Beside what an interrupted ingestion leaves, two kinds of texts are kept: in how many parts the cohort is written, and
for each part why subjects of it cannot be used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from ketanet.cohort.writing import COMPACTING, KEY, CohortWriter
from ketanet.errors import InputError

_PARTS, _UNUSABLE = "parts", "unusable.{number}.json"
_NAMED = 5  # subjects and parts that a message names


@dataclass(frozen=True)
class Part:
    """One of several parts of a cohort, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"3/16"`` as the third of sixteen; raises InputError for anything else."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"the part is {text!r}; it is i/n, such as 3/16, with i from 1 to n (--part)")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """For names of files."""
        return f"{self.number}-of-{self.of}"

    def rows(self, subjects: int) -> range:
        """Positions of this part among so many subjects: every `of`-th, because neighbours are often alike in size."""
        return range(self.number - 1, subjects, self.of)


class PartWriter(CohortWriter):
    """Writes a cohort in parts. Others may write other parts at the same time."""

    def begin_part(self, part: Part) -> None:
        """Create the unfinished store, or join those who write it; called while the store's lock is held.

        Raises
        ------
        InputError
            The store exists, or was begun with another plan or in another number of parts, or is being finished.
        """
        with self._place.errors():
            self._require_same_plan()
            self._require_not_there()
            if self._place.read(COMPACTING) is not None:
                raise InputError(f"{self.path}: every part is in, and finishing it has begun; use --finish")
        self.begin()
        with self._place.errors():
            if self.parts not in (None, part.of):
                raise InputError(
                    f"{self.path} was begun in {self.parts} parts, {part.of} are asked for; use --part i/{self.parts}, "
                    f"or 'ketanet clean {self.path}' to begin anew"
                )
            self._place.write(_PARTS, str(part.of))

    def note_unusable(self, part: Part, reasons: Mapping[str, str]) -> None:
        """Keep why subjects of a part, by their ids, cannot be used."""
        identities = {s.id: s.identity for s in self.plan.subjects}
        known = {name: {"why": why, "identity": identities[name]} for name, why in reasons.items()}
        with self._place.errors():
            self._place.write(_UNUSABLE.format(number=part.number), json.dumps(known))

    def require_all(self, *, skip_bad: bool) -> dict[str, str]:
        """Check that nothing is missing; called while the store's lock is held.

        Parameters
        ----------
        skip_bad : bool
            Subjects that cannot be used may be missing.

        Returns
        -------
        dict of subject id to reason
            Subjects that cannot be used.

        Raises
        ------
        InputError
            Nothing was begun in parts, or with another plan, or subjects are missing; or the store exists.
        """
        with self._place.errors():
            if self._is_moved:
                return {}
            self._require_same_plan()
            self._require_not_there()
            if (of := self.parts) is None:
                raise InputError(
                    f"{self.path}: no part was begun, so there is nothing to finish; first run every part "
                    "(--part 1/n, ..., n/n)"
                )
            if self._place.read(COMPACTING) is not None and self._replaced():
                raise InputError(
                    f"{self.path}: files have changed since finishing it began; 'ketanet clean {self.path}', then run "
                    "the parts again"
                )
            pending = self.pending
            unusable = self._unusable({row % of + 1 for row in pending})
        bad = {row: unusable[row] for row in pending if row in unusable}
        if missing := [row for row in pending if row not in bad]:
            raise InputError(self._how_to_complete(missing, of))
        if bad and not skip_bad:
            first = next(iter(bad))
            more = f" (and {len(bad) - 1} more subjects)" if len(bad) > 1 else ""
            raise InputError(
                f"{bad[first]}{more}; mend the file, run --part {first % of + 1}/{of} again, then --finish; or "
                "--finish --skip-bad leaves such subjects out"
            )
        return {self.plan.subjects[row].id: why for row, why in bad.items()}

    @property
    def parts(self) -> int | None:
        """In how many parts the cohort is written; None where none was begun."""
        text = self._place.read(_PARTS)
        return None if text is None else int(text)

    def _unusable(self, parts: Iterable[int]) -> dict[int, str]:
        """Why subjects of some parts cannot be used, by row; of files that have changed since, nothing is known."""
        rows = {(s.id, s.identity): row for row, s in enumerate(self.plan.subjects)}
        found = {}
        for number in parts:
            known = json.loads(self._place.read(_UNUSABLE.format(number=number)) or "{}")
            for name, facts in known.items():
                if (row := rows.get((name, facts["identity"]))) is not None:
                    found[row] = facts["why"]
        return found

    def _how_to_complete(self, missing: list[int], of: int) -> str:
        subjects = _listed([self.plan.subjects[row].id for row in missing])
        numbers = sorted({row % of + 1 for row in missing})
        again = _listed([f"--part {number}/{of}" for number in numbers])
        return (
            f"{self.path}: {len(missing)} of {len(self.plan.subjects)} subjects are not in yet ({subjects}); run "
            f"again, with the same options, {again}; then --finish"
        )

    def _require_same_plan(self) -> None:
        key = self._place.read(KEY)
        if key not in (None, self.plan.key):
            raise InputError(
                f"{self.path} was begun with other people, settings or versions (digest {key[:8]} there, "
                f"{self.plan.key[:8]} here); give every part, and --finish, the same options, or "
                f"'ketanet clean {self.path}' to begin anew"
            )

    def _require_not_there(self) -> None:
        if self._place.is_taken():
            raise InputError(f"{self.path} exists already; choose another name or remove it first")


def _listed(words: list[str]) -> str:
    return ", ".join(words[:_NAMED]) + (f", ... ({len(words)})" if len(words) > _NAMED else "")
