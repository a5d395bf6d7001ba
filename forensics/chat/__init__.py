"""Chat templates as the programs they are."""
