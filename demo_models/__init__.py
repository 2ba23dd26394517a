"""Trains the demo models: a composer, a synthesizer, a solved codec and a small language model. See README.md."""
