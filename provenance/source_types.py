"""Where the pixels of a picture come from, in the terms of IPTC's vocabulary Digital Source Type."""

from typing import Final, Literal

SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""Made by a model; or by a model into another picture, of which pixels stay (IPTC: "such as with inpainting or outpainting")."""

_VOCABULARY: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_PLAIN: Final = {
    "trainedAlgorithmicMedia": "made by a trained model",
    "compositeWithTrainedAlgorithmicMedia": "made in part by a trained model, the rest is another picture's",
}


def name_term(source_type: SourceType) -> str:
    """The term's address, which is what files hold."""
    return _VOCABULARY + source_type


def explain_term(address: str) -> str:
    """In plain words, with the term itself.

    >>> explain_term("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia")
    'made by a trained model (trainedAlgorithmicMedia)'
    """
    term = address.removeprefix(_VOCABULARY)
    return f"{_PLAIN[term]} ({term})" if term in _PLAIN else term
