"""What the batcher is made of: each of its rules in a room of its own."""
