"""What OpenAI's parameters come to."""

from hypothesis import given
from hypothesis import strategies as st

from api_schemas.stages import lay_stages
from service.openai_api.parameters import EditParameters, ImageParameters, Quality
from service.openai_api.translate import choose_steps, write_submissions
from tests.story import CARD

QUALITIES: tuple[Quality, ...] = ("low", "medium", "high", "xhigh", "max")
limits = st.integers(1, 200)


@given(limits, limits, limits)
def test_a_better_quality_has_no_fewer_steps_and_the_model_takes_them(
    least: int, own: int, most: int
) -> None:
    least, own, most = sorted((least, own, most))
    card = CARD.model_copy(update={"min_steps": least, "default_steps": own, "max_steps": most})
    steps = [choose_steps(card, quality) for quality in QUALITIES]
    assert steps == sorted(steps)
    assert least <= steps[0] <= steps[1] == own <= steps[4] <= most


@given(st.integers(0, 2**63 - 1), st.integers(1, 10))
def test_seeds_count_on_from_the_one_asked_for(seed: int, count: int) -> None:
    asked = ImageParameters.model_validate({"prompt": "x", "n": count, "chorale": {"seed": seed}})
    seeds = [each.request.seed for each in write_submissions(asked, CARD, {}, "")]
    assert seeds == [(seed + index) % 2**63 for index in range(count)]


@given(st.sampled_from(QUALITIES), st.sampled_from(["low", "high"]), st.integers(1, 60))
def test_an_edit_runs_a_step_and_more_the_less_it_keeps(quality: Quality, fidelity: str, own: int) -> None:
    card = CARD.model_copy(update={"default_steps": own})
    asked = {"prompt": "x", "quality": quality, "size": "512x512"}
    run: list[int] = []
    for choice in ("high", fidelity):
        edit = EditParameters.model_validate(asked | {"input_fidelity": choice})
        (submission,) = write_submissions(edit, card, {}, "")
        (stage,) = lay_stages(card, submission.request)
        run.append(stage.steps)
    assert 1 <= run[0] <= run[1]


def test_null_is_the_same_as_left_out_and_former_qualities_have_their_own() -> None:
    empty = dict.fromkeys(ImageParameters.model_fields) | {"prompt": "x"}
    assert ImageParameters.model_validate(empty) == ImageParameters.model_validate({"prompt": "x"})
    for former, quality in (("auto", "medium"), ("standard", "medium"), ("hd", "high")):
        asked = ImageParameters.model_validate({"prompt": "x", "quality": former})
        assert asked.chosen_quality == quality
