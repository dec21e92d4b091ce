"""What the verbs that tune do: each recipe answers for its data and model, one driver runs them."""
