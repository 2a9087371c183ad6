"""Where a model's files come from, if not from a path: the only part that fetches models, at the
start alone."""
