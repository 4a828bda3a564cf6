"""The models that jobs may name."""

from fastapi import APIRouter

from api_schemas.answers import ModelList
from service.dependencies import ServicesDep
from service.openapi import problems

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=problems())
async def list_models(services: ServicesDep) -> ModelList:
    """List all models with their limits, the default one first."""
    return ModelList(data=await services.catalog.list_cards())
