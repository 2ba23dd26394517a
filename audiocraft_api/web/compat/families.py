"""The families of compatible routes, and which of them a server has."""

from __future__ import annotations

from flask import Blueprint

from audiocraft_api.config.compat import CompatSettings
from audiocraft_api.web.compat import cog, elevenlabs, elevenlabs_uploads, files, huggingface, lyria, openai, replicate


def enabled_families(settings: CompatSettings) -> list[Blueprint]:
    """Return the blueprints of the families that the settings enable."""
    families = {
        openai.blueprint: settings.compat_openai,
        huggingface.blueprint: settings.compat_huggingface,
        elevenlabs.blueprint: settings.compat_elevenlabs,
        elevenlabs_uploads.blueprint: settings.compat_elevenlabs,
        replicate.blueprint: settings.compat_replicate,
        files.blueprint: settings.compat_replicate,
        lyria.blueprint: settings.compat_lyria,
        cog.blueprint: settings.compat_replicate,
    }
    return [blueprint for blueprint, is_enabled in families.items() if is_enabled]
