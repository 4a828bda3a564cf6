"""What API keys may use, and what they have used."""
