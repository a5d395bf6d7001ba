"""The hunt: search for inputs that change the candidate and not the base, and find out what they do."""
