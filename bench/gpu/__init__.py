"""Benchmarks on a CUDA device: protocols, ceilings, implementations, and the stages of gpu_check.py."""
