"""Released checkpoints and plain parts become a Flamingo, and a Flamingo a released checkpoint."""
