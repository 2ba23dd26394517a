"""Decode engines: parameters in, waveforms out. Imports torch when an engine starts; never imports Flask."""
