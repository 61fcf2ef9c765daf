"""Documents, passages and rows: from text files to token ids and labels."""
