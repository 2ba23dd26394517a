"""How state outlasts a request: an SQLite file of this machine, a Redis that all share. Knows nothing of what is kept."""
