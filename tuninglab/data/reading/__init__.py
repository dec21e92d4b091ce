"""From a path to samples: what lies there, record by record, checked once and kept."""
