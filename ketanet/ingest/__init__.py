"""From the files a laboratory has to a cohort store. One module per source; the writer knows no format."""

from ketanet.ingest.cifti import CiftiSource
from ketanet.ingest.denoise import Denoise
from ketanet.ingest.fmriprep import FmriprepSource
from ketanet.ingest.lacuna import LacunaSource
from ketanet.ingest.leaddbs import LeadDbsSource
from ketanet.ingest.nifti import NiftiSource
from ketanet.ingest.nimlab import NimlabSource
from ketanet.ingest.parcels import ParcelSource
from ketanet.ingest.parts import PartDone, finish_parts, ingest_part
from ketanet.ingest.run import ingest_cohort
from ketanet.ingest.source import Nuisance, Record, Run, Scan, Source
from ketanet.ingest.verifying import SourceVerification, verify_sources
from ketanet.ingest.xcpd import XcpdParcelSource, XcpdSource

__all__ = [
    "CiftiSource",
    "Denoise",
    "FmriprepSource",
    "LacunaSource",
    "LeadDbsSource",
    "NiftiSource",
    "NimlabSource",
    "Nuisance",
    "ParcelSource",
    "PartDone",
    "Record",
    "Run",
    "Scan",
    "Source",
    "SourceVerification",
    "XcpdParcelSource",
    "XcpdSource",
    "finish_parts",
    "ingest_cohort",
    "ingest_part",
    "verify_sources",
]
