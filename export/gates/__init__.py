"""What a file has to pass before it is published."""
