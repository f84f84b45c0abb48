"""Builds no wheel without the scripts of the pages: a server whose charts are missing would look whole in a test."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ASSETS = ("echarts.js", "htmx.js", "faces.css", "text-latin.woff2", "text-latin-ext.woff2", "LICENCES.txt")
FOLDER = Path(__file__).resolve().parent / "src" / "luthier" / "platform" / "ui" / "vendor"


class BuildWithAssets(build_py):
    """`build_py` that stops where built assets are missing; an editable install gets them from `make`."""

    def run(self) -> None:
        missing = [name for name in ASSETS if not (FOLDER / name).is_file()]
        if missing and not self.editable_mode:
            raise SystemExit(
                f"came: no {', '.join(missing)} in {FOLDER}\n"
                "expected: the built assets of the pages, which a wheel carries\n"
                "what to do: build with `make wheel`, or run `cd frontend && npm ci && npm run build` first"
            )
        super().run()


setup(cmdclass={"build_py": BuildWithAssets})
