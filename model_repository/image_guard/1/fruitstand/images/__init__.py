"""Check encoded images before any decoder sees them, decode them, and convert other formats."""
