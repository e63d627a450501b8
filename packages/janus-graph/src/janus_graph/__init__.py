"""janus-graph."""
