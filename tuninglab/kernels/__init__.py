"""Small C kernels for CPUs: passes over rows that torch would make in several steps."""
