"""Whether a prompt describes a scene, which has one horizon, or a texture: by words and their weights."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_CITED = 2  # words that a reason names
_RANKS = {None: 0, False: 1, True: 2}
_Weight = Annotated[float, Field(allow_inf_nan=False)]


class SceneWords(BaseModel):
    """What a model's text encoder knows about scenes, as a linear classifier of the prompt's words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias: float = Field(
        le=0, allow_inf_nan=False, description="Log odds of a scene before any word is counted."
    )
    weights: dict[_Weight, str] = Field(
        description="What a word adds to them: words in lower case, separated by spaces, by their weight."
    )

    def judge(self, prompt: str) -> tuple[bool | None, str]:
        """(whether it is a scene, why); None if no word of it is known."""
        known = self._weigh(prompt)
        if not known:
            return None, "no word of the prompt suggests a scene or a texture"
        if self.bias + sum(known.values()) > 0:
            return True, f"{_cite(known, 1)} a scene"
        if min(known.values()) < 0:
            return False, f"{_cite(known, -1)} a texture"
        return False, f"{_cite(known, 1)} a scene, but not clearly"

    def judge_all(self, prompts: Sequence[str]) -> tuple[bool | None, str]:
        """The same of one picture with several prompts: a scene if one of them is, else as the first that says anything."""
        return max(map(self.judge, prompts), key=lambda judged: _RANKS[judged[0]])

    def _weigh(self, prompt: str) -> dict[str, float]:
        """The known words of the prompt, each once."""
        weights = {word: weight for weight, words in self.weights.items() for word in words.split()}
        return {word: weights[word] for word in re.findall(r"[^\W\d_]+", prompt.lower()) if word in weights}


def _cite(known: dict[str, float], sign: int) -> str:
    """The words that say most about it, in the prompt's order: 'mountains' and 'lake' suggest."""
    cited = [word for word in known if known[word] * sign > 0]
    most = sorted(cited, key=lambda word: -known[word] * sign)[:_CITED]
    words = [f"'{word}'" for word in cited if word in most]
    return f"{' and '.join(words)} {'suggest' if len(words) > 1 else 'suggests'}"
