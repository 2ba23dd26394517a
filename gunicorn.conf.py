"""gunicorn's configuration: one process, which owns the device, and many threads. Values come from the settings."""

import gc
import sys

from audiocraft_api.config import ConfigError, load_config
from audiocraft_api.core import openmp
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.net.listening import check_is_free
from audiocraft_api.policy.prompt_policy import PromptPolicy
from audiocraft_api.storage.create import check_store
from audiocraft_api.telemetry.admin_listener import listen
from audiocraft_api.telemetry.logs import configure_logging
from audiocraft_api.web.gunicorn_worker import ServerLog, Worker

openmp.limit_spinning()  # workers inherit the environment
try:
    settings = load_config()
    configure_logging(settings)
    # Check what the settings refer to once, before any worker starts.
    Catalog(settings)
    PromptPolicy(settings)
    check_store(settings)
except ConfigError as error:
    sys.exit(str(error))

bind = settings.server.bind
worker_class = Worker
workers = 1  # one process owns the device, with one engine
threads = settings.server.threads
worker_connections = 1000 + settings.server.threads
graceful_timeout = settings.server.graceful_timeout_seconds
timeout = 120  # of the worker's heartbeat, not of requests: loading a model can delay it
keepalive = settings.server.keepalive_seconds
preload_app = False  # threads and CUDA do not survive a fork
control_socket_disable = True
logger_class = ServerLog


def on_starting(server):
    """Check the server's address, and open the port of the admin listener once, for all workers."""
    try:
        check_is_free(settings.server.bind)
        server.admin_socket = listen(settings.telemetry.admin_bind) if settings.telemetry.admin_bind else None
    except ConfigError as error:
        sys.exit(str(error))


def post_fork(server, worker):
    worker.admin_socket = server.admin_socket


def worker_exit(_server, worker):
    """Close the services unless a graceful stop has closed them."""
    if hasattr(worker, "wsgi"):
        worker.services.close()
    gc.freeze()  # otherwise the interpreter's last collection traverses torch's objects for seconds
