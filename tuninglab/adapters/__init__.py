"""How a model is tuned: TuningConfig becomes a PEFT LoRA, and what else trains besides."""
