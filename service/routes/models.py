"""The models that can be asked for."""

from fastapi import APIRouter

from api_schemas.answers import ModelList
from service.dependencies import Rooms
from service.openapi import problems

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=problems())
async def list_models(rooms: Rooms) -> ModelList:
    """Every model that a worker has announced, the default one first, with its limits."""
    return ModelList(data=await rooms.catalog.list_cards())
