"""Where networks, tokenizers and templates come from."""
