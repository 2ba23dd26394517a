"""Database helpers for SQLite and Redis. They know nothing of the stored data."""
