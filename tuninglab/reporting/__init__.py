"""The report of a run, as a page to read and figures for programs."""
