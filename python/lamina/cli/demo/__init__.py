"""`lamina demo`: a real sentence encoder, compressed, beside itself in f32 and, on CUDA, in f16."""
