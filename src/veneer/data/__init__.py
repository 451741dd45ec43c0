"""Labelled text: where it comes from, how it is read, split and scored."""
