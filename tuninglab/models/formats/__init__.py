"""Released checkpoints: what their files hold, and what becomes of every key in a Flamingo."""
