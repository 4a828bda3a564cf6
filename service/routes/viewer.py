"""The web page and its files."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER: Final = Path(__file__).parent.parent / "viewer"
# The hash is of the one style sheet that OpenSeadragon 6.1.1 adds by itself.
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self';"
    " style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE=';"
    " img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
# These files change with every version and have no hash in their names: browsers revalidate (304).
_OWN = "no-cache"
_VENDORED = "public, max-age=86400"


class _ViewerFiles(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = _VENDORED if path.startswith("vendor") else _OWN
        if path.endswith(".html"):
            response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response


_files = _ViewerFiles(directory=_FOLDER, check_dir=False)
router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_page(request: Request) -> Response:
    return await _files.get_response("index.html", request.scope)


@router.get("/docs")
async def show_reference(request: Request) -> Response:
    """Swagger UI over /openapi.json."""
    return await _files.get_response("docs.html", request.scope)


def mount(app: FastAPI) -> None:
    """Serve the page's files below /viewer/."""
    app.mount("/viewer", _files)
