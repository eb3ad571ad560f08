"""Data sets: find the images, check them, split them, and write a prepared folder."""
