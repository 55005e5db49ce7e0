"""Derivatives of fMRIPrep (20.2 to 25): preprocessed images in a template space, with their confounds."""

from __future__ import annotations

from ketanet.errors import InputError
from ketanet.ingest.bids import IMAGE, BidsFile, check_content
from ketanet.ingest.confounds import load_confounds_table
from ketanet.ingest.derivatives import DerivativesSource
from ketanet.ingest.source import Nuisance, Run


class FmriprepSource(DerivativesSource):
    """``*_space-X[_res-Y]_desc-preproc_bold.nii.gz`` of every subject, session and run.

    Every run needs its confounds table (``_desc-confounds_timeseries.tsv``, before fMRIPrep 20.2 ``_regressors.tsv``)
    and, without `mask` and `grid`, its brain mask. Of a multi-echo run the combination of the echoes is taken.

    Parameters
    ----------
    folder, space, task, participants, mask, grid, share, tr, entities
        See :class:`DerivativesSource`.

    References
    ----------
    Esteban et al. 2019, fMRIPrep: a robust preprocessing pipeline for functional MRI, doi 10.1038/s41592-018-0235-4
    """

    name = "fmriprep"
    desc = "preproc"
    marks_frames = "non-steady state"

    def nuisance(self, run: Run, strategy: str | None) -> Nuisance:
        """Confounds by a named strategy, motion and non-steady frames, from the run's table."""
        assert run.confounds is not None
        return load_confounds_table(run.confounds, strategy, run.n_time)

    def _tables(self, file: BidsFile) -> tuple[str | None, ...]:
        entities = {(k, v) for k, v in file.run if k != "echo"} | {("desc", "confounds")}
        table = self._layout.find(entities, ("timeseries", "regressors"), (".tsv",))
        if table is None:
            raise InputError(
                f"{file.path}: no confounds table beside it (*_desc-confounds_timeseries.tsv or _regressors.tsv)"
            )
        check_content(table.path)
        return (table.path,)

    def _brain(self, file: BidsFile) -> str:
        entities = dict(file.entities) | {"desc": "brain"}
        mask = self._layout.find(entities.items(), ("mask",), IMAGE)
        if mask is None:
            raise InputError(f"{file.path}: no brain mask beside it (*_desc-brain_mask.nii.gz); give one with --mask")
        check_content(mask.path)
        return mask.path
