"""The table: what a cell shows, and which rows there are."""

from benchmarks.quality.table import draw_table


def test_a_column_is_a_run_and_what_is_relative_is_over_the_first() -> None:
    first = {"kid crops": 0.2, "kid crops error": 0.01, "texture mean_contrast": 30.0}
    lines = draw_table("2048²", {"cascade": first, "lead": {"kid crops": 0.05}}).splitlines()
    assert lines[0] == "| 2048² | goal | cascade | lead |"
    assert lines[2].endswith("| ≤ 0.5x cascade | 0.2000 ± 0.0100 | 0.0500 (0.25x) |")
    assert lines[3].endswith("| ± 5 % | 30.0 | - |")
    assert len(lines) == 4


def test_seam_ratios_have_the_blurred_one_in_brackets() -> None:
    figures = {"scene seam tile": 1.014, "scene seam tile blurred": 0.9, "scene seam tile error": 0.02}
    assert draw_table("1024²", {"run": figures}).splitlines()[2].endswith("| 1.01 ± 0.02 (0.90) |")
