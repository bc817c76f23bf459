"""Datasets, procedural scenes, augmentation and the input pipeline (no jax)."""
