"""What a training step will need, before there is one: memory, bytes sent, operations and time, from integers alone."""
