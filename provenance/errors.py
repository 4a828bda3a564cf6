"""What can go wrong with a picture's provenance.

ProvenanceError
├── CredentialsError    certificate and key cannot sign now; the message says which and why
├── SigningError        the picture is there, and cannot be signed
└── UnreadableFileError a file is no picture that can be read
"""


class ProvenanceError(Exception):
    """Root of this package's errors."""


class CredentialsError(ProvenanceError):
    """Certificate and key cannot sign now."""


class SigningError(ProvenanceError):
    """The picture is there, and cannot be signed."""


class UnreadableFileError(ProvenanceError):
    """A file is no picture that can be read."""
