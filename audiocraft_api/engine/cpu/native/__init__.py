"""The C++ decoder for CPUs: sources, build and ctypes bindings. It knows nothing of requests and does not import torch."""
