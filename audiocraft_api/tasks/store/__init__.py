"""Task stores: one protocol, implemented on SQLite and on Redis."""
