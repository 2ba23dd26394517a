"""The OpenAPI document and the HTML pages. Every asset is served locally, so that the pages work without Internet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request, send_from_directory, url_for
from pydantic import BaseModel

from audiocraft_api import __version__
from audiocraft_api.core.errors import InvalidRequest, StorageUnavailable
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.web.asyncapi import build_asyncapi
from audiocraft_api.web.auth import needs_key
from audiocraft_api.web.openapi import build_openapi
from audiocraft_api.web.operations import Access, access
from audiocraft_api.web.schemas.forms import ContinuationRequest, MelodyRequest
from audiocraft_api.web.schemas.generation import GenerateRequest, StreamRequest
from audiocraft_api.web.schemas.tasks import ContinuationTaskRequest, MelodyTaskRequest, TaskRequest
from audiocraft_api.web.services import services

PAGES = Path(__file__).parent.parent / "pages"
# Swagger UI's style sheet embeds its icons as data: images.
CONTENT_SECURITY_POLICY = "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'"

blueprint = Blueprint("docs", __name__)


@blueprint.get("/docs/static/<path:filename>")
@access(Access.OPEN)
def static(filename: str) -> Response:
    return send_from_directory(PAGES / "static", filename)


@blueprint.get("/openapi.json")
@access(Access.OPEN)
def openapi() -> dict[str, Any]:
    catalog = services().catalog
    text_sizes = [spec.name for spec in catalog if catalog.is_allowed(spec)]
    melody_sizes = [name for name in text_sizes if _follows_melodies(catalog, name)]
    sizes: dict[type[BaseModel], list[str]] = {
        GenerateRequest: text_sizes,
        StreamRequest: text_sizes,
        TaskRequest: text_sizes,
        ContinuationRequest: text_sizes,
        ContinuationTaskRequest: text_sizes,
        MelodyRequest: melody_sizes,
        MelodyTaskRequest: melody_sizes,
    }
    return build_openapi(current_app, sizes, _needs_key)


@blueprint.get("/asyncapi.json")
@access(Access.OPEN)
def asyncapi() -> dict[str, Any]:
    return build_asyncapi()


@blueprint.get("/")
@access(Access.OPEN)
def index() -> Response:
    """Serve the playground, or to clients that prefer JSON, where everything is."""
    wants_json = request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json"
    response = jsonify(_discovery()) if wants_json else _page("index.html")
    response.vary.add("Accept")
    return response


@blueprint.get("/docs")
@access(Access.OPEN)
def docs() -> Response:
    return _page("docs.html")


def _discovery() -> dict[str, str]:
    endpoints = ("docs.docs", "docs.openapi", "models.models", "health.health", "generate.generate")
    links = {endpoint.partition(".")[2]: url_for(endpoint) for endpoint in endpoints}
    return {"name": "AudioCraft API", "version": __version__} | links


def _needs_key(access: Access) -> bool:
    try:
        keys_required = services().access.requires_key()
    except StorageUnavailable:
        keys_required = True
    return keys_required and needs_key(access, services().config.access.audio_requires_key)


def _page(name: str) -> Response:
    response = send_from_directory(PAGES, name)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


def _follows_melodies(catalog: Catalog, size: str) -> bool:
    try:
        catalog.melody_checkpoint(size)
    except InvalidRequest:
        return False
    return True
