"""`lamina demo`: compares a compressed sentence encoder with itself in f32 and, on CUDA, in f16."""
