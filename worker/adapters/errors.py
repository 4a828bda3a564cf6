"""Why a model cannot be served, or not as asked.

ModelError
├── ModelFolderError           missing, incomplete, or holding pickled weights
├── DamagedModelError          a file does not have the digest that the folder states
├── UnknownFamilyError         no adapter for this pipeline class
├── UnsupportedSchedulerError  the folder's scheduler does not work with its family
└── UnsupportedConditionError  the model cannot be conditioned on that
"""


class ModelError(Exception):
    """Root of the adapters' errors."""


class ModelFolderError(ModelError):
    """The folder is missing, incomplete, or holds pickled weights."""


class DamagedModelError(ModelError):
    """A file does not have the digest that the folder states."""


class UnknownFamilyError(ModelError):
    """No adapter for this pipeline class."""


class UnsupportedSchedulerError(ModelError):
    """The folder's scheduler does not work with its family; names those that do."""


class UnsupportedConditionError(ModelError):
    """The model cannot be conditioned on that; names field, value and what is allowed."""
