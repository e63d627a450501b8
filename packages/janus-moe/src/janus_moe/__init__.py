"""janus-moe."""
