"""Is fine-tuning worth it? A case in, an answer with intervals and reasons out; nothing is read or written here."""

from luthier.ml.planning.roi.contradictions import check_case
from luthier.ml.planning.roi.run import worth

__all__ = ["check_case", "worth"]
