"""The page of a case: the answer, the pictures behind it, and every input; it needs nothing else."""

from luthier.ml.planning.roi.report.page import render_worth, write_worth_report

__all__ = ["render_worth", "write_worth_report"]
