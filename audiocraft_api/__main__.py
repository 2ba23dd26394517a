"""The operator's command line: `python -m audiocraft_api keys create | list | revoke`.

It uses the settings of the server and accesses the state store directly, so the server need not be running. A running
server applies changes within a second.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from audiocraft_api.access.api_key import ApiKey, new_key
from audiocraft_api.access.caller import DEFAULT_SCOPES, SCOPES, CallerLimits, Scope, scopes_of
from audiocraft_api.access.create import create_key_store
from audiocraft_api.access.key_store import KeyStore
from audiocraft_api.config import Config, ConfigError, load_config, variable_name
from audiocraft_api.core.errors import StorageUnavailable
from audiocraft_api.state.create import create_state

DAY_SECONDS = 86_400.0
MAX_NAME = 100
COLUMNS = ("id", "name", "state", "scopes", "created", "expires", "limits")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. If it fails, exit with a message."""
    given = _parser().parse_args(arguments)
    try:
        config = load_config()
        state = create_state(config)
        try:
            given.run(create_key_store(state), config, given)
        finally:
            state.close()
    except (ConfigError, StorageUnavailable) as error:
        sys.exit(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m audiocraft_api", description="Operate AudioCraft API.")
    keys = parser.add_subparsers(required=True, metavar="keys").add_parser("keys", help="manage API keys")
    commands = keys.add_subparsers(required=True, metavar="create | list | revoke")
    create = commands.add_parser("create", help="create a key and print it; it cannot be shown again")
    create.add_argument("--name", required=True, type=_name, help="name of the key, such as its owner, for display")
    create.add_argument(
        "--scopes",
        type=_scopes,
        default=DEFAULT_SCOPES,
        help="comma-separated scopes: generate, read, admin (default: generate,read)",
    )
    create.add_argument("--expires-days", type=_days, help="number of days until the key expires (default: never)")
    for limit in fields(CallerLimits):
        option = "--" + limit.name.replace("_", "-")
        help_text = f"override {variable_name(limit.name)} for this key; 0: no limit"
        create.add_argument(option, type=_count, help=help_text)
    create.set_defaults(run=_create)
    show = commands.add_parser("list", help="list all keys")
    show.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="revoke a key")
    revoke.add_argument("id", help="id of the key: the part between acg_ and the next _")
    revoke.set_defaults(run=_revoke)
    for command in (create, show, revoke):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _create(store: KeyStore, config: Config, given: argparse.Namespace) -> None:
    now = time.time()
    if sum(key.is_usable(now) for key in store.all()) >= config.access.max_keys:
        sys.exit(
            f"There are already {config.access.max_keys} usable keys. Revoke a key or increase AUDIOCRAFT_API_MAX_KEYS."
        )
    limits = CallerLimits(**{limit.name: getattr(given, limit.name) for limit in fields(CallerLimits)})
    expires = None if given.expires_days is None else now + given.expires_days * DAY_SECONDS
    key, known = new_key(given.name, given.scopes, limits, created=now, expires=expires)
    store.add(known)
    if given.json:
        print(json.dumps({"key": key} | _shown(known)))
        return
    print(key)
    print(
        f"This is the key of {known.name!r}. It cannot be shown again, because only its hash is stored.",
        file=sys.stderr,
    )


def _list(store: KeyStore, _config: Config, given: argparse.Namespace) -> None:
    shown = [_shown(key) for key in store.all()]
    if given.json:
        print(json.dumps(shown))
        return
    rows = [COLUMNS, *(tuple(_cell(key[column]) for column in COLUMNS) for key in shown)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke(store: KeyStore, _config: Config, given: argparse.Namespace) -> None:
    key = store.revoke(given.id, time.time())
    if key is None:
        sys.exit(f"There is no key with the id {given.id}. List the ids with `keys list`.")
    print(json.dumps(_shown(key)) if given.json else f"{key.id} is revoked.")


def _shown(key: ApiKey) -> dict[str, Any]:
    """Return the fields of a key that the commands print."""
    state = "revoked" if key.revoked is not None else "usable" if key.is_usable(time.time()) else "expired"
    return {
        "id": key.id,
        "name": key.name,
        "state": state,
        "scopes": sorted(key.scopes),
        "created": _time(key.created),
        "expires": _time(key.expires),
        "revoked": _time(key.revoked),
        "limits": {name: value for name, value in asdict(key.limits).items() if value is not None},
    }


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={count}" for name, count in value.items()) or "-"
    return ",".join(value) if isinstance(value, list) else str(value or "-")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text.strip()) <= MAX_NAME:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_NAME} printable characters")
    return text.strip()


def _scopes(text: str) -> frozenset[Scope]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(SCOPES):
        raise argparse.ArgumentTypeError(f"expected a comma-separated list of {', '.join(SCOPES)}")
    return scopes_of(names)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not (math.isfinite(days) and 0 < days <= 36_500):
        raise argparse.ArgumentTypeError("expected a number of days greater than 0 and at most 36500")
    return days


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = -1
    if not 0 <= count <= 10**9:
        raise argparse.ArgumentTypeError("expected an integer from 0 to 1000000000")
    return count


if __name__ == "__main__":
    main()
