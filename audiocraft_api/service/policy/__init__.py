"""Which prompts are taken: a normaliser, a word list, and the operator's own moderation service."""
