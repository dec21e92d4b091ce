"""How the embedded base was made, from nothing."""
