"""Who calls and how much they may use: API keys, tokens, rate limits, quotas, request slots. Knows nothing of Flask."""
