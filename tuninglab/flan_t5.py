"""`cd tuninglab && python flan_t5.py`, a command of the source document: `tuninglab flan-t5`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path; the package must come from its parent, and no
    # module in this folder may stand in for another's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tuninglab.cli import flan_t5_main

    sys.exit(flan_t5_main())
