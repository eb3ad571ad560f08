"""`fruitstand data check`: damage, duplicates, and whether a split holds what it claims."""
