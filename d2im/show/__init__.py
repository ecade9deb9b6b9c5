"""Figures, scenes, pages, and notebooks in batch."""
