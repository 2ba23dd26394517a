"""Database helpers for SQLite and Redis. They know nothing of the data that is stored."""
