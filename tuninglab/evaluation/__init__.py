"""How well a tuned model answers, and whether it looks at the pictures."""
