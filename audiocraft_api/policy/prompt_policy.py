"""Decides whether music may be made of a prompt: the word list first, then the operator's moderation service."""

from __future__ import annotations

from audiocraft_api.config import Config
from audiocraft_api.core.errors import PromptRefused
from audiocraft_api.policy.moderation import Moderation
from audiocraft_api.policy.word_list import SHIPPED, WordList


class PromptPolicy:
    """What one server refuses. Prompts are personal: none of this logs one, nor says which words were found."""

    def __init__(self, config: Config) -> None:
        """Read the list. Raises ConfigError."""
        self._words = WordList(config.policy.word_list_file or SHIPPED) if config.policy.enabled else None
        self._moderation = Moderation(config) if config.policy.enabled and config.policy.moderation_url else None

    def check(self, prompt: str) -> None:
        """Let a prompt pass, or raise PromptRefused; raises ModerationUnavailable where that cannot be told."""
        found = self._words.find(prompt) if self._words else None
        if found is not None:
            raise PromptRefused(f"The prompt seems to contain {found.contains}.", found.name, found.suggestion)
        if self._moderation is not None:
            self._moderation.check(prompt)
