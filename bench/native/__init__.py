"""C helpers of the benchmark: measured ceilings of the machine."""
