"""From files to batches: frames, their statistics, and which of them make up a step."""
