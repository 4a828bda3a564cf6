"""Quality of large pictures, measured against real ones and against the model's own small ones."""
