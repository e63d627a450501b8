"""janus-train."""
