"""Decoding on CPUs: the native kernels, whose C++ sources are in `native/`, and their Python backend."""
