"""The HTTP API: validates requests, stores jobs, streams their events. Never loads a model."""
