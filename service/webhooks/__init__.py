"""Webhooks: endpoints, and a process of its own that tells them of events (Standard Webhooks)."""
