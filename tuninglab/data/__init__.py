"""How samples get in: files to records, pictures, prompt and labels, batches in a seeded order."""
