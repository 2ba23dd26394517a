"""Codes to waveform: decodes the codes of running requests in blocks, on a thread of its own."""
