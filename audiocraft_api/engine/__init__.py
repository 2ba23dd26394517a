"""Engines turn parameters into waveforms. torch lives here, imported only when an engine starts; Flask never does."""
