"""What a server records of its traffic: numbers about some images, and on request the images."""
