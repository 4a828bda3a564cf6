"""The record of an API key, which `chorale keys` writes too."""

from api_schemas.keys import ApiKey as ApiKey
from api_schemas.keys import Quota as Quota
from api_schemas.keys import Scope as Scope
