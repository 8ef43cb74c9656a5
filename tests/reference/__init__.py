"""The meaning of every op, written slowly and plainly in numpy. No code is shared with the kernels."""
