"""From the files a laboratory has to a cohort store. One module per source; the writer knows no format."""

from ketanet.ingest.nifti import NiftiSource
from ketanet.ingest.parcels import ParcelSource
from ketanet.ingest.run import ingest_cohort
from ketanet.ingest.source import Record, Scan, Source

__all__ = ["NiftiSource", "ParcelSource", "Record", "Scan", "Source", "ingest_cohort"]
