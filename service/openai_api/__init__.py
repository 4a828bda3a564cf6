"""OpenAI's Images API over the jobs of this service: its parameters, answers and events."""
