"""`fruitstand classify`: input sources and output formats."""
