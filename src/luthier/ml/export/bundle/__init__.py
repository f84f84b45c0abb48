"""The bundle: an export with its card, lineage, parts and manifest, named by a digest and never changed again."""

from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.bundle.verify import verify
from luthier.ml.export.bundle.write import add_bundle_files

__all__ = ["BundleFacts", "add_bundle_files", "verify"]
