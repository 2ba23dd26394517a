"""The C++ decoder for CPUs: sources, build and ctypes bindings. Knows nothing of requests and never imports torch."""
