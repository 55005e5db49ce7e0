"""The report of a study and its pictures, made of what a results folder holds; the quality page of a cohort."""

from ketanet.report.figure_files import write_figures
from ketanet.report.page import write_report
from ketanet.report.pictures import network_picture
from ketanet.report.qc import write_qc

__all__ = ["network_picture", "write_figures", "write_qc", "write_report"]
