"""Encoded audio: writes files, streams and tags, and decodes uploads. Knows neither the engine nor HTTP."""
