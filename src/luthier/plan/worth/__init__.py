"""Is fine-tuning worth it? A case in, an answer with intervals and reasons out; nothing is read or written here."""

from luthier.plan.worth.contradictions import check_case
from luthier.plan.worth.run import worth

__all__ = ["check_case", "worth"]
