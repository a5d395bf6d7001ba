"""White-box forensics of a candidate model against a trusted base: open, compare, decide, record."""

__version__ = "0.1.0"
