"""Telemetry for operators: metrics, readiness, traces and the admin listener."""
