"""The tables of API keys, cached results and quotas, which share one SQLite file. Executes nothing."""

from audiocraft_api.state.sqlite import Layout

# Rows of `api_keys` are never deleted, so that the number of keys and revocations shows whether anything changed.
API_KEYS = """
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL,
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    limits TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL
)
"""

RESULTS = """
CREATE TABLE results (
    key TEXT PRIMARY KEY,
    filename TEXT NOT NULL,
    answer TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL
);
CREATE INDEX results_by_age ON results (created);
CREATE INDEX results_by_use ON results (used);
CREATE TABLE result_leases (
    key TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    held_until REAL NOT NULL,
    seconds REAL NOT NULL
)
"""

QUOTAS = """
CREATE TABLE quotas (
    day INTEGER NOT NULL,
    owner TEXT NOT NULL,
    requests INTEGER NOT NULL,
    milliseconds INTEGER NOT NULL,
    PRIMARY KEY (day, owner)
) WITHOUT ROWID
"""

LAYOUT = Layout("state store", 1, ";".join((API_KEYS, RESULTS, QUOTAS)))
