"""Output: events, their schema, and the one writer that owns the real stdout."""
