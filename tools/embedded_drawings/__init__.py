"""How the drawings that ship with the package were made: `python -m tools.embedded_drawings`."""
