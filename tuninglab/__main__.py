"""`python -m tuninglab` is the `tuninglab` command."""

import sys

from tuninglab.cli import main

sys.exit(main())
