"""From a path to samples: what lies there, record by record, checked once and kept.

The way of a path: `opening` asks `entries` whether it is kept. If not, `finding` says what it holds
(`containers`: shards, tables, folders; `json_files`; `sets`: documents of benchmark sets), and
`formats` what each of its records is; `building` writes the samples, which `store` reads.
"""
