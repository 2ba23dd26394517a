"""Who may call, and what of: callers, their keys and the stores that keep these. Knows nothing of HTTP or models."""
