"""The gates that a model file has to pass before it is published."""
