"""How the gains of speculative decoding and of compressed weights compound: python -m bench.study.

kernels  how long linear layers and attention take, for each number of rows
decode   SmolLM2 with and without drafts, in each format
page     docs/compounding.md and its figures, from the files that the others have written
"""
