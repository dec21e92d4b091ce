"""How a model is tuned: TuningConfig becomes a PEFT LoRA, and what else trains besides."""

import logging

# Lines that bitsandbytes writes for everybody who has it installed, for PEFT imports it: that an
# optional package for 4 bits is missing, and for each 8-bit layer what it casts its input to.
for _name in ("backends.cpu.ops", "autograd._functions"):
    logging.getLogger(f"bitsandbytes.{_name}").setLevel(logging.ERROR)
