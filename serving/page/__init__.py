"""The web page that tries the served model."""
