"""Figures of docs/tour.md, drawn with the parts of the program."""
