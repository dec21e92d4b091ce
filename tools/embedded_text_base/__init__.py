"""How the embedded text base was made: `python -m tools.embedded_text_base`."""
