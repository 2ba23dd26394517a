"""Database helpers for SQLite and Redis. Know nothing of what is stored."""
