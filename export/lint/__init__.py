"""Rules about `config.pbtxt` files."""
