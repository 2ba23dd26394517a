"""What operators see: metrics, readiness, traces and the admin listener."""
