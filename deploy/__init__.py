"""What runs fruitstand on other machines: its image, and offline scoring on Ray Data."""
