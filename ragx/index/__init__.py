"""Passages -> vectors -> FAISS and lexical index, and their search."""
