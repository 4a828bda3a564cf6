"""The HTTP and WebSocket door; never imports torch, diffusers or worker."""
