"""Fuzzing of the parsers that read what clients send: `make fuzz`."""
