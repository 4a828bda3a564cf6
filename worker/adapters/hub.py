"""Models by the name that they have on the hub: fetched once, then read from the hub's own cache."""

from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from worker.adapters.errors import ModelFolderError

# In this order, since what has no variant is what diffusers would take.
_VARIANTS = (None, "bf16", "fp16")
_NEVER_READ = {"safety_checker": None, "feature_extractor": None}


def fetch(name: str) -> Path:
    """The folder of a model, as `someone/model`; what its pipeline needs of it, without pickled weights.

    HF_HOME says where the cache is, HF_TOKEN who asks. Without a way to the hub the cache has to do.

    Raises:
        ModelFolderError: it is neither on the hub nor in the cache, or it would run code of its own.
    """
    errors: list[Exception] = []
    for variant in _VARIANTS:
        try:
            return Path(
                DiffusionPipeline.download(name, use_safetensors=True, variant=variant, **_NEVER_READ)
            )
        except Exception as error:  # whatever diffusers, the hub and the network may raise
            errors.append(error)
    raise ModelFolderError(f"{name} cannot be fetched from the hub: {errors[0]}") from errors[0]
