"""API keys: who calls, and what he may."""
