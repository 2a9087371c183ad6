"""Models that guess for another one: draft models, heads of speculation, assistants."""
