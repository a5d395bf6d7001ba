"""Policies that come with the tool, as TOML."""
