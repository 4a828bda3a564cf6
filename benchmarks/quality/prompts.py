"""What is asked for: no caption of the data set says the same."""

from training.corpus import split_words

SCENES: tuple[str, ...] = (
    "mountains above a misty lake at dawn",
    "waves breaking on a rocky shore at noon",
    "a pine forest below snowy summits",
    "dunes stretching to the horizon at sunset",
    "a green valley with a winding river",
    "towering thunderclouds over flat farmland",
    "an autumn meadow in front of wooded hills",
    "a frozen plain under a pink evening sky",
)
# With the category of real tileable pictures that each is compared with.
TEXTURES: dict[str, str] = {
    "molten lava beneath a black crust": "lava",
    "cobbles of an old market square": "paving",
    "weathered red bricks with pale mortar": "brick",
    "a freshly mown lawn": "grass",
    "a sheer grey granite rock face": "rock",
    "ripples in yellow dune sand": "sand",
    "oak floor boards": "wood",
    "rounded wet pebbles on a beach": "gravel",
}
_FILLERS = frozenset(["a", "an", "and", "at", "in", "of", "on", "the", "with"])


def find_known(prompts: list[str], captions: list[str]) -> list[str]:
    """The prompts that a caption says too: in the same words, whatever their order, or as a part of it."""
    known = {_reduce(caption) for caption in captions}
    return [
        prompt
        for prompt in prompts
        if _reduce(prompt) in known or any(prompt in caption.lower() for caption in captions)
    ]


def _reduce(sentence: str) -> frozenset[str]:
    return frozenset(split_words(sentence)) - _FILLERS
