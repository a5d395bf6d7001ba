"""Pages made from a saved run. Nothing here imports torch or touches a model."""
