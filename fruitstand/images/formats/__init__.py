"""Structural checks of BMP, JPEG, PNG and WebP files."""
