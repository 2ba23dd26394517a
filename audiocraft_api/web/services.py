"""Gives routes the services of their app."""

from __future__ import annotations

from typing import cast

from flask import Flask, current_app

from audiocraft_api.services import Services

EXTENSION = "audiocraft_api"


def services_of(app: Flask) -> Services:
    """Return the services of an app."""
    return cast(Services, app.extensions[EXTENSION])


def services() -> Services:
    """Return the services of the app that handles the current request."""
    return services_of(current_app)
