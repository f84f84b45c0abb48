"""The export formats, one file each. A format writes the source model into an empty folder."""
