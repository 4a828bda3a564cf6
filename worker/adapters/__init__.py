"""diffusers' models behind the engine's protocols: one file per model family in families/, and registry.py picks."""
