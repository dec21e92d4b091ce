"""The main recipe under torchrun: `torchrun --nproc_per_node=2 fine_tuning.py --run_name exp_1`.

The flags are those of `tuninglab finetune`.
"""

import sys

from tuninglab.cli import finetune_main

if __name__ == "__main__":
    sys.exit(finetune_main())
