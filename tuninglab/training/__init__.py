"""How a model is trained: the loop, its state on disk, devices and processes, what is logged."""
