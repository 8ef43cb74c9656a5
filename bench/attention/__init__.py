"""The parts of bench/ops/paged_attention.py: cases, inputs, the exact result, floors, and peers."""
