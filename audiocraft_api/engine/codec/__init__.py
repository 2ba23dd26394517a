"""Codes to waveform: decodes the codes of running requests in blocks, on its own thread."""
