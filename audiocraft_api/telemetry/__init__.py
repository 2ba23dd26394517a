"""What the operator sees: metrics, readiness, the admin listener, traces. Above the service, which knows none of it."""
