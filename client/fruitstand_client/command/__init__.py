"""`fruitstand classify`: where images come from, and where answers go."""
