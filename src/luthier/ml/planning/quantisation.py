"""How the frozen base of QLoRA is held: 4 bits where a library computes them well, 8 bits of our own elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

from luthier.core.errors import RecipeError
from luthier.core.plan import Quantisation, Source
from luthier.core.recipe import QuantisationName
from luthier.ml.inference.models.structure import Structure

LIBRARY = "bitsandbytes"


def choose_quantisation(asked: QuantisationName | None, device: str) -> tuple[Quantisation, Source, str]:
    """The kind, where it comes from, and why.

    nf4: NormalFloat of 4 bits with doubly quantised scales (Dettmers et al., 2023, arXiv:2305.14314, section 3), about
    0.52 bytes a weight. int8: one scale an output, 1 byte a weight.

    Raises:
        RecipeError: nf4 without the library that computes it.
    """
    # Looked up without importing: bitsandbytes loads CUDA libraries.
    has_library = find_spec(LIBRARY) is not None
    if asked == "nf4" and not has_library:
        raise RecipeError(
            f"method.quantisation is nf4, but {LIBRARY} is not installed",
            expected="the library that packs weights into 4 bits",
            do="install it (pip install 'luthier[nf4]'), or leave method.quantisation out: int8 needs no library",
        )
    if asked in ("nf4", "int8"):
        return asked, "asked", "in the recipe"
    if has_library:
        return "nf4", "derived", f"{LIBRARY} is installed: 0.52 bytes a weight on {device}"
    return "int8", "derived", f"{LIBRARY} is not installed: 1 byte a weight, by Luthier itself"


def packed_share(structure: Structure) -> str:
    """How many parameters are packed, and which are not: those stay as wide as they are computed with.

    Packing takes matrices that are called. Experts that lie in one tensor are no such, nor are embeddings and head, nor
    matrices whose weight other code reads past their module.
    """
    s = structure
    experts = sum(layer.num_parameters for layer in s.experts)
    others = s.num_parameters - s.num_packed_parameters - s.num_embedding_parameters - experts
    parts = (
        ("of experts in one tensor", experts),
        ("of embeddings and head", s.num_embedding_parameters),
        ("that are no matrices or are read past their module", others),
    )
    wide = ", ".join(f"{count:,} {what}" for what, count in parts if count > 0)
    said = f"packs {s.num_packed_parameters:,} of {s.num_parameters:,} parameters"
    return f"{said}; in the precision of the run stay {wide}" if wide else said
