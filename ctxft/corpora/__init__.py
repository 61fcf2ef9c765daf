"""Corpora: from files or the hub to passages of token ids."""
