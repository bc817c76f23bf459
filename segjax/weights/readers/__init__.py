"""Readers of weight files, one per format."""
