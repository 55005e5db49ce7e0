"""The report of a study and its pictures, made of what a results folder holds."""

from ketanet.report.page import write_report
from ketanet.report.pictures import network_picture

__all__ = ["network_picture", "write_report"]
