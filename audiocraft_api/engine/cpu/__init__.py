"""Decoding on CPUs: the Python side of the native kernels, whose C++ sources are in `native/`."""
