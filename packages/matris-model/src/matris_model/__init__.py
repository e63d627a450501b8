"""matris-model."""
