"""janus-comm."""
