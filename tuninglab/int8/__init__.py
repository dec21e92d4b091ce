"""Frozen int8 linear layers: one int8 copy of each weight, multiplied as int8 both ways."""
