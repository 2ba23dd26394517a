"""Where finished audio is kept: one interface, `AudioStore`, and its backends. Knows nothing of HTTP or models."""
