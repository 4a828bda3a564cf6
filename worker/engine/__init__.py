"""The tiled loop: torch and geometry, nothing of the service. Start at generate.py."""
