"""The bundle: an export with its card, lineage, SBOM and manifest. A digest names it, and it never changes."""

from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.bundle.verify import verify
from luthier.ml.export.bundle.write import add_bundle_files

__all__ = ["BundleFacts", "add_bundle_files", "verify"]
