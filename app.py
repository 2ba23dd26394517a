"""The entry point of the server: `gunicorn app:app` in production, `python app.py` in development."""

from __future__ import annotations

import sys
from typing import Any

from audiocraft_api.config import ConfigError, load_config
from audiocraft_api.core import openmp
from audiocraft_api.factory import create_app
from audiocraft_api.storage.create import check_store
from audiocraft_api.web.services import services_of


def __getattr__(name: str) -> Any:
    """Create `app` on first access: importing this module reads no settings and starts nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = create_app()
    return globals()["app"]


def main() -> None:
    """Serve with Werkzeug's development server."""
    openmp.limit_spinning()
    try:
        config = load_config()
        application = create_app(config)
        check_store(config)
        services_of(application).start()
    except ConfigError as error:
        sys.exit(str(error))
    host, _, port = config.server.bind.rpartition(":")
    if host == "unix":
        host, port = f"unix://{port}", "0"
    application.run(host=host.strip("[]"), port=int(port), threaded=True)


if __name__ == "__main__":
    main()
