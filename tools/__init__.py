"""Scripts that rebuild what ships with the package."""
