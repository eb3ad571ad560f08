"""What each image format promises in its bytes: walks over BMP, JPEG, PNG and WebP files."""
