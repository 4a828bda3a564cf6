"""A job's events and previews, as they come."""
