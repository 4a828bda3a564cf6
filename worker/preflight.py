"""`python -m worker.preflight`: why a worker would refuse to start here, told without starting one."""

import sys

from pydantic import ValidationError

from api_schemas.settings import RefusedSettingsError, describe_refused, print_refusal
from worker.adapters.errors import ModelFolderError
from worker.adapters.source import ModelSource, find_here
from worker.settings import WorkerSettings


def read_settings() -> WorkerSettings:
    """From the environment; a model of the hub is not asked for.

    Raises:
        RefusedSettingsError: one is refused, or there is no such model.
    """
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        raise RefusedSettingsError(*describe_refused(error, WorkerSettings)) from error
    try:
        find_here(ModelSource(settings.model, settings.models_file))
    except ModelFolderError as error:
        raise RefusedSettingsError(f"CHORALE_MODEL={settings.model} is refused: {error}") from error
    return settings


if __name__ == "__main__":
    sys.exit(print_refusal(read_settings))
