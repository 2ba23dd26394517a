"""Decoding on NVIDIA GPUs: captured CUDA graphs."""
