"""Instruments: mathematics on tensors and arrays. No model, no file, no page."""
