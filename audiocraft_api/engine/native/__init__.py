"""The decoder in C++ for CPUs: sources, their build and the bindings. Knows nothing of requests; imports no torch."""
