"""Authentication and limits: API keys, tokens, rate limits, quotas and concurrency slots. Knows nothing of Flask."""
