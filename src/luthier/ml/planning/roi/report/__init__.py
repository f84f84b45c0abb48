"""The page of a case: the answer, the pictures behind it, and every input; it needs nothing else."""

from luthier.ml.planning.roi.report.page import render_roi, write_roi_report

__all__ = ["render_roi", "write_roi_report"]
