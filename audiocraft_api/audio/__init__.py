"""Encoded audio: waveforms to files and streams, tags in files, and decoding of uploads. Knows no engine and no HTTP."""
