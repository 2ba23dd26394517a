"""The one composition root: config → services → extensions → blueprints. Makes everything, decides nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask_cors import CORS

from audiocraft_api.access.authenticator import Authenticator
from audiocraft_api.access.key_store import KeyStore, SqliteKeyStore
from audiocraft_api.access.limits import Limits
from audiocraft_api.access.quota_store import QuotaStore, SqliteQuotaStore
from audiocraft_api.access.rate_limiter import MemoryRateLimiter, RateLimiter
from audiocraft_api.access.request_slots import RequestSlots
from audiocraft_api.access.stream_slots import StreamSlots
from audiocraft_api.audio.upload import UploadDecoder
from audiocraft_api.config import Config, load_config
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.observer import Observer
from audiocraft_api.generation.cache.base import ResultStore
from audiocraft_api.generation.cache.result_cache import ResultCache
from audiocraft_api.generation.cache.sqlite import SqliteResultStore
from audiocraft_api.generation.preloading import Preloader
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.generation.streaming import StreamingService
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.model_cache import ModelCache
from audiocraft_api.policy.prompt_policy import PromptPolicy
from audiocraft_api.services import Services
from audiocraft_api.state import schema
from audiocraft_api.state.sqlite import SqliteFile
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.storage.create import create_store
from audiocraft_api.tasks.backend import EmbeddedBackend, TaskBackend
from audiocraft_api.tasks.store.base import TaskStore
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.view import task_json
from audiocraft_api.telemetry import sources
from audiocraft_api.telemetry.admin_listener import AdminListener, admin_answers
from audiocraft_api.telemetry.health import Health
from audiocraft_api.telemetry.logs import configure_logging
from audiocraft_api.telemetry.telemetry import Telemetry
from audiocraft_api.web import auth, context, errors, observing, parsing, rate_headers
from audiocraft_api.web import websocket as websocket_support
from audiocraft_api.web.blueprints import (
    audio,
    docs,
    generate,
    health,
    melody,
    metrics,
    models,
    streams,
    task_events,
    tasks,
    websocket,
)
from audiocraft_api.web.services import EXTENSION

if TYPE_CHECKING:
    from audiocraft_api.state.redis import RedisClient
    from audiocraft_api.tasks.celery.backend import CeleryBackend

BLUEPRINTS = (health, metrics, models, generate, melody, tasks, task_events, streams, websocket, audio, docs)
# What a page of another origin may read of an answer, beyond the body.
EXPOSED_HEADERS = [
    *("X-Request-ID", "Retry-After", "Content-Disposition", "Content-Range", "Accept-Ranges", "Location"),
    *("Preference-Applied", "WWW-Authenticate"),
    *rate_headers.HEADERS,
    *streams.HEADERS,
]
STATE_TIMEOUT_SECONDS = 1.0  # every request asks it who calls: better no answer than a late one
# A form has ten texts and one file; its texts are held in memory, the file is not.
MAX_FORM_PARTS = 50
MAX_FORM_MEMORY_BYTES = 256 * 2**10


def create_app(
    config: Config | None = None,
    *,
    catalog: Catalog | None = None,
    cache: ModelCache | None = None,
    engine: Engine | None = None,
    store: AudioStore | None = None,
) -> Flask:
    """Make an app from `config` (default: from the environment); services given are used in place of its own.

    Quick, and without torch: the first request that needs a model loads it. Raises ConfigError.
    """
    config = config or load_config()
    configure_logging(config)
    state = create_state(config)
    catalog = catalog or Catalog(config)
    cache = cache or ModelCache(catalog, config)
    telemetry = Telemetry("servers", config)
    store = telemetry.counting_errors(store or create_store(config), "audio")
    remote = _create_remote_tasks(store, config, telemetry) if config.tasks.backend == "celery" else None
    engine = engine or (remote.engine if remote else create_engine(cache, config))

    generation = GenerationService(
        engine, store, config, create_results(state, store, cache, config, telemetry), telemetry
    )
    tasks = remote or _create_tasks(generation, store, config, telemetry)
    draining = threading.Event()
    preloader = Preloader(engine, () if remote else config.models.preload)
    health = Health(
        engine,
        cache,
        config,
        draining,
        num_queued=lambda: tasks.monitor.status.num_queued,
        pending_models=lambda: preloader.pending,
    )
    app = Flask("audiocraft_api", static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=config.audio.max_upload_bytes,
        SOCK_SERVER_OPTIONS=websocket_support.server_options(config),
        MAX_FORM_MEMORY_SIZE=MAX_FORM_MEMORY_BYTES,
        MAX_FORM_PARTS=MAX_FORM_PARTS,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.merge_slashes = False  # a `//` would be redirected, to whatever host the client named
    app.extensions[EXTENSION] = services = Services(
        config=config,
        state=state,
        access=Authenticator(telemetry.counting_errors(create_key_store(state), "keys"), config),
        limits=Limits(create_rate_limiter(config), create_quota_store(state), config),
        catalog=catalog,
        cache=cache,
        policy=PromptPolicy(config),
        engine=engine,
        preloader=preloader,
        store=store,
        generation=remote.generation if remote else generation,
        streaming=StreamingService(generation, config),
        melodies=UploadDecoder(config),
        request_slots=RequestSlots(config),
        stream_slots=StreamSlots(config),
        tasks=tasks,
        telemetry=telemetry,
        health=health,
        admin=AdminListener(admin_answers(health, telemetry.metrics)),
        draining=draining,
    )
    _expose(services, has_engine=remote is None)
    context.init_app(app)
    observing.init_app(app)
    rate_headers.init_app(app)
    errors.init_app(app)
    auth.init_app(app)
    app.before_request(parsing.require_sized_body)
    if config.server.cors_origins:
        CORS(
            app,
            origins=list(config.server.cors_origins),
            expose_headers=EXPOSED_HEADERS,
            send_wildcard=True,
            max_age=3600,
        )
    for module in BLUEPRINTS:
        app.register_blueprint(module.blueprint)
    return app


def create_state(config: Config) -> SqliteFile | RedisClient:
    """Return what the stores of keys, quotas and known results share; it opens with its first use."""
    if not config.shares_state:
        return SqliteFile(config.state.db, schema.LAYOUT)
    from audiocraft_api.state.redis import RedisClient

    return RedisClient(config.state.redis_url, schema.LAYOUT.name, timeout_seconds=STATE_TIMEOUT_SECONDS)


def create_key_store(state: SqliteFile | RedisClient) -> KeyStore:
    """Return the store of API keys in the shared state."""
    if isinstance(state, SqliteFile):
        return SqliteKeyStore(state)
    from audiocraft_api.access.key_store import RedisKeyStore
    from audiocraft_api.state.redis import PREFIX

    return RedisKeyStore(state, PREFIX)


def create_quota_store(state: SqliteFile | RedisClient) -> QuotaStore:
    """Return the store of daily quotas in the shared state."""
    if isinstance(state, SqliteFile):
        return SqliteQuotaStore(state)
    from audiocraft_api.access.quota_store import RedisQuotaStore
    from audiocraft_api.state.redis import PREFIX

    return RedisQuotaStore(state, PREFIX)


def create_rate_limiter(config: Config) -> RateLimiter:
    """Return what counts requests within a minute; it connects with its first use."""
    if not config.shares_state:
        return MemoryRateLimiter()
    from audiocraft_api.access.rate_limiter import RedisRateLimiter
    from audiocraft_api.state.redis import PREFIX

    return RedisRateLimiter(config.state.redis_url, PREFIX)


def create_results(
    state: SqliteFile | RedisClient, files: AudioStore, cache: ModelCache, config: Config, observer: Observer
) -> ResultCache | None:
    """Return the result cache, or None where the settings want none."""
    if not config.results.cache_entries:
        return None
    return ResultCache(_create_result_store(state, config), files, cache.known_revision, config, observer)


def _create_result_store(state: SqliteFile | RedisClient, config: Config) -> ResultStore:
    max_entries, max_age_seconds = config.results.cache_entries, config.results.cache_max_age_seconds
    if isinstance(state, SqliteFile):
        return SqliteResultStore(state, max_entries=max_entries, max_age_seconds=max_age_seconds)
    from audiocraft_api.generation.cache.redis import RedisResultStore

    return RedisResultStore(state, max_entries=max_entries, max_age_seconds=max_age_seconds)


def _expose(services: Services, *, has_engine: bool) -> None:
    """Have the metrics read what the services count anyway; an engine elsewhere is read where it is."""
    config, metrics = services.config, services.telemetry.metrics
    metrics.read_from(observing.doors_source(services.request_slots, services.stream_slots))
    metrics.read_from(sources.queue_source(services.tasks.monitor, config))
    metrics.read_from(sources.health_source(services.health))
    if has_engine:
        metrics.read_from(sources.engine_source(services.engine, services.cache, config))


def _create_tasks(
    generation: GenerationService, files: AudioStore, config: Config, telemetry: Telemetry
) -> TaskBackend:
    tasks = telemetry.counting_errors(_create_task_store(config), "tasks")
    return EmbeddedBackend(tasks, generation, files, config, _renderer(files), telemetry)


def _create_remote_tasks(files: AudioStore, config: Config, telemetry: Telemetry) -> CeleryBackend:
    from audiocraft_api.tasks.celery.backend import CeleryBackend

    tasks = telemetry.counting_errors(_create_task_store(config), "tasks")
    return CeleryBackend(tasks, files, config, _renderer(files), telemetry)


def _create_task_store(config: Config) -> TaskStore:
    if not config.shares_state:
        return SqliteTaskStore(config.tasks.db, max_attempts=config.tasks.attempts)
    from audiocraft_api.tasks.store.redis import RedisTaskStore

    return RedisTaskStore(config.state.redis_url, max_attempts=config.tasks.attempts)


def _renderer(files: AudioStore) -> Callable[[Task], dict[str, Any]]:
    return lambda task: task_json(task, files)


def create_engine(cache: ModelCache, config: Config) -> Engine:
    """Return the engine that the settings name; it starts with its first request."""
    if config.engine.kind == "plain":
        from audiocraft_api.engine.plain import PlainEngine

        return PlainEngine(cache, config)
    from audiocraft_api.engine.batching import BatchingEngine

    return BatchingEngine(cache, config)
