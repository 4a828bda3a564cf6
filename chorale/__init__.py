"""Client and command line of Chorale. Names are imported when they are asked for: a guard's process needs none of them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "AdvancedSettings": "api_schemas.advanced",
    "AsyncClient": "chorale.async_client",
    "ChoraleError": "chorale.errors",
    "Client": "chorale.client",
    "GenerationRequest": "api_schemas.generation",
    "Preview": "chorale.protocol",
    "Update": "chorale.protocol",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
