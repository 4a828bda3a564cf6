"""What surrounds every request and response."""
