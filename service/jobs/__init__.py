"""From a request to a queued job, and back to what clients see of it."""
