"""The report of an audit: one HTML page that needs nothing else."""

from luthier.ml.data.audit.report.page import render_audit, write_audit_report

__all__ = ["render_audit", "write_audit_report"]
