"""Classifier-free guidance."""

from torch import Tensor


def guide_classifier_free(predictions: Tensor, scale: float) -> Tensor:
    """Ho & Salimans 2022, eq. 6, in the form ε = ε₀ + s (ε₁ - ε₀).

    Args:
        predictions: (branches, C, h, w): without the prompt, with it; or with it alone.
    """
    if len(predictions) == 1:
        return predictions[0]
    free, prompted = predictions
    return free + scale * (prompted - free)
