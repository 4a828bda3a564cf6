"""Text of others on a terminal: shown, never obeyed."""

import unicodedata

_HIDDEN = ("Cc", "Cf", "Zl", "Zp")  # controls, escapes among them; marks that turn the direction; line ends


def show(text: str) -> str:
    r"""What a terminal would act upon as its escape; words, and what makes up letters of any script, stay.

    >>> show("moss\x1b[31m\u202e")
    'moss\\x1b[31m\\u202e'
    """
    return "".join(_escape(letter) if _is_hidden(letter) else letter for letter in text)


def _is_hidden(letter: str) -> bool:
    joins = letter in "\u200c\u200d"  # of scripts and emoji
    return unicodedata.category(letter) in _HIDDEN and not joins


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
