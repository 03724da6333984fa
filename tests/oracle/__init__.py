"""Somebody else's logits of every architecture: tiny models, and what other engines make of them.

`cases` is the table: a Hugging Face config, the metadata and the tensors of each. From a case come two sets of files
with the same weights (`tiny`): a directory for mlx-lm and a GGUF for llama.cpp and for us. `make` runs the other two
and stores their logits in `logits/`; tests only read these. `compare` holds ours against them.
"""
