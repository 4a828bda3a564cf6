"""Why a model cannot be served.

ModelError
├── ModelFolderError     missing, incomplete, or holding pickled weights
├── DamagedModelError    a file does not have the digest that the folder states
└── UnknownFamilyError   no adapter for this pipeline class
"""


class ModelError(Exception):
    """Root of the adapters' errors."""


class ModelFolderError(ModelError):
    """The folder is missing, incomplete, or holds pickled weights."""


class DamagedModelError(ModelError):
    """A file does not have the digest that the folder states."""


class UnknownFamilyError(ModelError):
    """No adapter for this pipeline class."""
