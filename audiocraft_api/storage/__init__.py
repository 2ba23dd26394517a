"""Stores of finished audio: a local directory or a bucket of an S3-compatible service."""
