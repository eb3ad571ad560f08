"""What an encoded image is, whether it is whole, and which of its bytes a decoder needs."""
