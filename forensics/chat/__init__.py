"""What two chat templates do, compared as programs: how they are run, read, what they depend on, and what sets them off."""
