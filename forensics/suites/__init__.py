"""Texts that are shipped with the tool, read by name."""
