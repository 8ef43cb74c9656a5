"""Microbenchmarks of lamina's ops beside their peers: `python bench/run.py --help`, and README.md."""
