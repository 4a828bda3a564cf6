"""One file per model family; registry.py picks. What families share: model.py, vae.py."""
