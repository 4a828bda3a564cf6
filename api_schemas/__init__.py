"""What clients, service and worker exchange: pydantic models and names, nothing else."""
