"""Creates the Flask app: config, services, extensions, blueprints. Builds no service itself (see `services`)."""

from __future__ import annotations

from flask import Flask
from flask_cors import CORS
from werkzeug.middleware.proxy_fix import ProxyFix

from audiocraft_api.config import Config, load_config
from audiocraft_api.core.engine import Engine
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.services import build_services
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.telemetry.logs import configure_logging
from audiocraft_api.web import auth, context, errors, lifetime, observing, parsing, rate_limit_headers
from audiocraft_api.web import websocket as websocket_support
from audiocraft_api.web.blueprints import (
    audio,
    continuation,
    docs,
    generate,
    health,
    live,
    melody,
    metrics,
    models,
    streams,
    task_events,
    tasks,
    websocket,
)
from audiocraft_api.web.compat.families import enabled_families
from audiocraft_api.web.services import EXTENSION

BLUEPRINTS = (
    health,
    metrics,
    models,
    generate,
    melody,
    continuation,
    tasks,
    task_events,
    streams,
    websocket,
    live,
    audio,
    docs,
)
# Response headers that scripts on pages of other origins may read.
EXPOSED_HEADERS = [
    *("X-Request-ID", "Retry-After", "Content-Disposition", "Content-Range", "Accept-Ranges", "Location"),
    *("Preference-Applied", "WWW-Authenticate", "song-id"),
    *rate_limit_headers.HEADERS,
    *streams.HEADERS,
]
# Forms have ten text fields and one file. Text fields are kept in memory, the file is not.
MAX_FORM_PARTS = 50
MAX_FORM_MEMORY_BYTES = 256 * 2**10


def create_app(
    config: Config | None = None,
    *,
    catalog: Catalog | None = None,
    cache: ModelCache | None = None,
    engine: Engine | None = None,
    store: AudioStore | None = None,
    intervals: TaskIntervals = DEFAULT_INTERVALS,
) -> Flask:
    """Create an app from `config` (default: from the environment); services that are passed in replace its own.

    Fast and without torch. Raises ConfigError.
    """
    config = config or load_config()
    configure_logging(config)
    app = Flask("audiocraft_api", static_folder=None)
    app.request_class = parsing.StrictRequest
    app.config.update(
        MAX_CONTENT_LENGTH=config.audio.max_upload_bytes,
        SOCK_SERVER_OPTIONS=websocket_support.server_options(config),
        MAX_FORM_MEMORY_SIZE=MAX_FORM_MEMORY_BYTES,
        MAX_FORM_PARTS=MAX_FORM_PARTS,
    )
    if num_proxies := config.limits.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=num_proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False  # otherwise `//` redirects to the host that the client named
    app.extensions[EXTENSION] = build_services(
        config, catalog=catalog, cache=cache, engine=engine, store=store, intervals=intervals
    )

    for module in (context, observing, lifetime, rate_limit_headers, errors, auth):
        module.init_app(app)
    app.before_request(parsing.refuse_leading_slashes)
    app.before_request(parsing.require_sized_body)
    if origins := config.server.cors_origins:
        CORS(app, origins=list(origins), expose_headers=EXPOSED_HEADERS, send_wildcard=True, max_age=3600)
    for module in BLUEPRINTS:
        app.register_blueprint(module.blueprint)
    for blueprint in enabled_families(config.compat):
        app.register_blueprint(blueprint)
    return app
