"""The models that jobs may name, also for OpenAI's clients."""

from typing import Annotated

from fastapi import APIRouter, Path

from api_schemas.answers import ModelList, ModelView
from api_schemas.catalog import ModelCard
from service.dependencies import ServicesDep
from service.errors import ModelMissingError
from service.openapi import openai_failures, problems

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=problems())
async def list_models(services: ServicesDep) -> ModelList:
    """List all models with their limits, the default one first. OpenAI's clients, told by their header `X-Stainless-Lang`, are answered failures in their form."""
    return ModelList(data=[_show(card) for card in await services.catalog.list_cards()])


@router.get("/v1/models/{name:path}", response_model=ModelView, responses=openai_failures(ModelMissingError))
async def get_model(
    name: Annotated[str, Path(description="`name` of a card.")], services: ServicesDep
) -> ModelView:
    """One model with its limits."""
    card = (await services.catalog.read_recent()).find(name)
    if card is None:
        raise ModelMissingError(f"no model {name[:200]!r}; GET /v1/models lists all")
    return _show(card)


def _show(card: ModelCard) -> ModelView:
    # Every part of it was validated when it was read.
    return ModelView.model_construct(**dict(card), id=card.name)
