"""Text of others cannot move the cursor, colour the terminal, or turn the direction of a line."""

import unicodedata

from chorale.plain_text import show


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    everything = "".join(map(chr, [*range(0x3000), *range(0xE0000, 0xE0100)]))
    kinds = {unicodedata.category(letter) for letter in show(everything) if letter not in "\u200c\u200d"}
    assert kinds.isdisjoint({"Cc", "Cf", "Zl", "Zp"})


def test_words_of_any_script_stay_as_they_are() -> None:
    for text in ("Жар-птица 火の鳥", "می\u200cخواهم", "👩\u200d🔬 e\u0301 \\x1b"):
        assert show(text) == text
