"""What clients, service and worker say to each other: pydantic models and names, nothing else."""
