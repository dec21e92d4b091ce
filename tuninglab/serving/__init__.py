"""A tuned model in use: opened from its run folder, and talked to."""
