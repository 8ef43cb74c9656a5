"""The benchmark's own arithmetic and formats. No test asserts a time."""
