"""What a request may say."""

import pytest
from pydantic import BaseModel, ValidationError

from api_schemas.add_ons import ControlSettings, IpAdapterSettings, LoraChoice
from api_schemas.advanced import AdvancedSettings, StageSettings
from api_schemas.generation import GenerationRequest

PARTS = (GenerationRequest, AdvancedSettings, StageSettings, LoraChoice, ControlSettings, IpAdapterSettings)
FIELDS = [
    pytest.param(part, name, id=f"{part.__name__}.{name}")
    for part in PARTS
    for name, field in part.model_fields.items()
    if field.annotation is not bool
]


@pytest.mark.parametrize(("part", "field"), FIELDS)
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number_and_nothing_else(part: type[BaseModel], field: str, value: bool) -> None:
    with pytest.raises(ValidationError) as caught:
        part.model_validate({"name": "moss", field: value} if "name" in part.model_fields else {field: value})
    (error,) = caught.value.errors()
    assert (error["loc"], error["type"]) == ((field,), "no_bool")


def test_a_truth_value_is_one_where_it_is_asked_for() -> None:
    assert GenerationRequest.model_validate({"embed_metadata": False}).embed_metadata is False
