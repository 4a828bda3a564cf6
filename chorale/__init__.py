"""Client and command line of Chorale."""

from api_schemas.advanced import AdvancedSettings
from api_schemas.generation import GenerationRequest
from chorale.async_client import AsyncClient
from chorale.client import Client
from chorale.errors import ChoraleError
from chorale.protocol import Preview, Update

__all__ = [
    "AdvancedSettings",
    "AsyncClient",
    "ChoraleError",
    "Client",
    "GenerationRequest",
    "Preview",
    "Update",
]
