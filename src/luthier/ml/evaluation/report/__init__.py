"""The report: one self-contained HTML page, and the same as a JSON document."""

from luthier.ml.evaluation.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
