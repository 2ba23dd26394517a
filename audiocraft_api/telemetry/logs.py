"""The format of log lines, text or JSON, each with the id of its request. Knows nothing of Flask.

Prompts are personal data: the service logs them at INFO only if `config.server.log_prompts` is set.
"""

from __future__ import annotations

import json
import logging
import logging.config
import time
from typing import Any

from audiocraft_api.config import Config
from audiocraft_api.core.log_context import request_id_var, task_id_var

# Fields that callers may pass in `extra=`. JSON lines contain them.
EXTRA_FIELDS = ("method", "path", "status", "milliseconds", "key_id")
# Control characters (C0, DEL, C1) and Unicode line separators are escaped, so that no client can forge a log line.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    code: f"\\u{code:04x}" for code in (0x2028, 0x2029)
}


def log_config(config: Config) -> dict[str, Any]:
    """Return the `logging.config` dictionary of this process, including gunicorn's loggers."""
    formatter = JsonFormatter if config.server.log_format == "json" else TextFormatter
    own: dict[str, Any] = {"level": config.server.log_level, "handlers": [], "propagate": True}
    quiet = {
        "level": "CRITICAL"
    }  # the exporter would log a traceback for each batch while the collector is unreachable
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": formatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {"audiocraft_api": own, "gunicorn.error": own, "gunicorn.access": own, "opentelemetry": quiet},
    }


def configure_logging(config: Config) -> None:
    """Send this process's log to standard error in the configured format."""
    logging.config.dictConfig(log_config(config))


class TextFormatter(logging.Formatter):
    """`time level [request id] logger: message`, one line per record, followed by its traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().translate(_CONTROLS)
        line = f"{_timestamp(record)} {record.levelname:<7} [{request_id_var.get()}] {record.name}: {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "request_id": request_id_var.get(),
            "message": record.getMessage(),
        }
        if task_id := task_id_var.get():
            fields["task_id"] = task_id
        fields |= {name: getattr(record, name) for name in EXTRA_FIELDS if hasattr(record, name)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
