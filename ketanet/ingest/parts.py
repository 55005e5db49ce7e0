"""Taking a source into a cohort store in parts, by jobs that need no cluster between them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from ketanet.cohort import Part, PartWriter
from ketanet.cohort.filling import fill_rows, how_to_go_on
from ketanet.errors import InputError
from ketanet.ingest.run import Settings, finish, prepare
from ketanet.ingest.source import Source
from ketanet.lock import locked, part_of


@dataclass(frozen=True)
class PartDone:
    """What a part has come to.

    Attributes
    ----------
    part : Part
    subjects : tuple of str
        Those of the part that are in the unfinished store.
    skipped : dict of str to str
        Why others of the part are not, by their ids.
    """

    part: Part
    subjects: tuple[str, ...]
    skipped: dict[str, str]


def ingest_part(source: Source, path: str | os.PathLike[str], part: str, **settings: Unpack[Settings]) -> PartDone:
    """Take one part of the subjects of a source into a store that others, given the same settings, fill with theirs.

    When all parts are in, :func:`finish_parts` makes the store appear. Parts may be written at the same time on several
    machines that see the store, each once at a time (``<store>.parts/3-of-16.lock``). One that failed or was killed is
    run again; it goes on where it stopped.

    Parameters
    ----------
    source : Source
    path : path
        Store to make, or its address on an object store.
    part : str
        ``"3/16"``: the third of sixteen.
    **settings
        As of :func:`ingest_cohort`. A subject that cannot be used by its tables stops every part, one of which only the
        image tells its own.

    Returns
    -------
    PartDone

    Raises
    ------
    InputError
        As :func:`ingest_cohort`; or the store was begun with other settings or in another number of parts, or this part
        or the whole store is being written.
    """
    one = Part.parse(part)
    ready = prepare(source, settings)
    writer, subjects = PartWriter(path, ready.plan), ready.plan.subjects
    rows = one.rows(len(subjects))
    with ExitStack() as held:
        with locked(path, starting=True):
            held.enter_context(locked(part_of(path, one.name)))
            writer.begin_part(one)
        skip_bad = settings.get("skip_bad", False)
        bad = fill_rows(writer, ready.reader, writer.pending_among(rows), skip_bad=skip_bad)
        writer.note_unusable(one, bad)
        if bad and not skip_bad:
            settled = len(rows) - len(writer.pending_among(rows))
            raise InputError(how_to_go_on(list(bad.values()), settled, len(rows), f"part {one} "))
        skipped = bad | writer.left_out_among(rows)
    return PartDone(one, tuple(subjects[row].id for row in rows if subjects[row].id not in skipped), skipped)


def finish_parts(source: Source, path: str | os.PathLike[str], **settings: Unpack[Settings]) -> Path | str:
    """Make the store appear of which every part is in: bit for bit that of :func:`ingest_cohort`.

    Parameters
    ----------
    source : Source
    path : path
    **settings
        Those of the parts. With `skip_bad` subjects stay out of which a part has found that they cannot be used.

    Returns
    -------
    Path or str
        The store: a path, or an address.

    Raises
    ------
    InputError
        Subjects are missing (the message names their parts), or a part is being written, or nothing was begun with
        these settings. What is there stays, unless fewer subjects can be used than a store must have.
    """
    ready = prepare(source, settings)
    writer = PartWriter(path, ready.plan)
    with locked(path):
        bad = writer.require_all(skip_bad=settings.get("skip_bad", False))
        return finish(writer, {**ready.skipped, **bad})
