"""The report: one self-contained HTML page, and the same as a JSON document."""

from luthier.ml.evaluation.report.page import ReportData, render_report, write_report

__all__ = ["ReportData", "render_report", "write_report"]
