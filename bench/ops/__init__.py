"""One module per op; bench/cases.py says what a module provides."""
