"""What every op means, written slowly and obviously in numpy: no code is shared with the kernels."""
