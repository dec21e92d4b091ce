"""What a model is made of, without its weights: module trees, statistics, presets."""
