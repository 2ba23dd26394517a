"""Which prompts are accepted: the word list and an external moderation service."""
