"""What a picture says of its origin: how that is written, and how it is read."""
