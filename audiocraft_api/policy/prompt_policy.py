"""Decides whether a prompt is allowed: by the word list first, then by the operator's moderation service."""

from __future__ import annotations

from audiocraft_api.config import Config
from audiocraft_api.core.errors import PromptRefused
from audiocraft_api.policy.moderation import Moderation
from audiocraft_api.policy.word_list import SHIPPED, WordList


class PromptPolicy:
    """One server's policy. Prompts are personal data: nothing logs them or says which words were found."""

    def __init__(self, config: Config) -> None:
        """Read the word list. Raises ConfigError."""
        self._words = WordList(config.policy.word_list_file or SHIPPED) if config.policy.enabled else None
        self._moderation = Moderation(config) if config.policy.enabled and config.policy.moderation_url else None

    def require_allowed(self, prompt: str) -> None:
        """Raise PromptRefused for a prompt that is not allowed, ModerationUnavailable without a verdict."""
        found = self._words.find(prompt) if self._words else None
        if found is not None:
            sentence = f"The prompt seems to contain {found.contains}."
            raise PromptRefused(sentence, found.name, found.suggestion, prompt=prompt)
        if self._moderation is not None:
            self._moderation.require_allowed(prompt)
