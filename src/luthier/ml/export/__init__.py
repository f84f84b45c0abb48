"""Models for other runtimes: merged, quantised, converted, proved equal, bundled."""
