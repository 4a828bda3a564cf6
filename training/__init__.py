"""How the bundled model was made; runnable, and independent of the service and the worker."""
