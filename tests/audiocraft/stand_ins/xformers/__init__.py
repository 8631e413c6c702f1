"""Stands in for xformers in a test environment; audiocraft uses its attention only where asked to."""
