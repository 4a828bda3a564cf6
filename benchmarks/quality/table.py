"""The table: a row for each measure, a column for each run."""

from dataclasses import dataclass

from benchmarks.quality.figures import Figures


@dataclass(frozen=True, slots=True)
class Row:
    """Shows one figure.

    Args:
        key: of the figure, and `key error` of its standard error.
        digits: after the point.
        blurred: a second figure, in brackets: `key blurred`.
        relative: in brackets, the figure over that of the first run.
    """

    label: str
    goal: str
    key: str
    digits: int = 2
    blurred: bool = False
    relative: bool = False

    def show(self, figures: Figures, first: Figures) -> str:
        value = figures.get(self.key)
        if value is None:
            return "-"
        shown = f"{value:.{self.digits}f}"
        if (error := figures.get(f"{self.key} error")) is not None:
            shown += f" ± {error:.{self.digits}f}"
        if self.blurred:
            shown += f" ({figures[f'{self.key} blurred']:.2f})"
        if self.relative and first is not figures and first.get(self.key):
            shown += f" ({value / first[self.key]:.2f}x)"
        return shown


_SEAM = "1.00 ± .03"
ROWS = (
    Row("scenes reduced to 512 px: KID to real landscapes", "", "kid whole", 4),
    Row("the model's own 512 px pictures: KID to the same", "", "kid native", 4),
    Row("their ratio", "≤ 1.15", "kid ratio"),
    Row("scenes reduced to 512 px: PSNR to the model's own picture of that noise, dB", "", "agreement", 1),
    Row("scenes, native 512 px crops: KID to held-out large photographs", "≤ 0.5x cascade", "kid crops", 4, relative=True),
    Row("scenes: energy above 1/8 of the sampling rate, over real crops", "0.8 to 1.2", "band 0.125"),
    Row("scenes: energy above 1/4 of the sampling rate, over real crops", "0.8 to 1.2", "band 0.25"),
    Row("scenes: nearest far-apart crops, distance over real", "≥ 0.9", "nearest"),
    Row("scenes: seam ratio, tile lines (blurred)", _SEAM, "scene seam tile", blurred=True),
    Row("scenes: seam ratio, decode lines (blurred)", _SEAM, "scene seam decode", blurred=True),
    Row("textures: spread of tone between cells, of 255", "", "texture tone"),
    Row("over real", "≤ 1.25", "texture tone ratio"),
    Row("textures: spread of contrast between cells", "", "texture contrast", 3),
    Row("over real", "≤ 1.25", "texture contrast ratio"),
    Row("textures: spread of pattern scale between cells", "", "texture scale", 3),
    Row("over real", "≤ 1.25", "texture scale ratio"),
    Row("textures: mean contrast, of 255", "± 5 %", "texture mean_contrast", 1, relative=True),
    Row("textures: mean gradient, of 255", "± 5 %", "texture mean_gradient", relative=True),
    Row("textures: seam ratio, tile lines (blurred)", _SEAM, "texture seam tile", blurred=True),
    Row("textures: seam ratio, decode lines (blurred)", _SEAM, "texture seam decode", blurred=True),
    Row("textures: seam ratio, the join of the wrap (blurred)", _SEAM, "texture seam wrap", blurred=True),
    Row("seconds for a scene", "", "scene seconds", 1),
    Row("seconds for a texture", "", "texture seconds", 1),
)  # fmt: skip


def draw_table(title: str, runs: dict[str, Figures], rows: tuple[Row, ...] = ROWS) -> str:
    """Markdown, without the rows that no run has figures for.

    Args:
        runs: figures by name; others are shown relative to the first.
    """
    first = next(iter(runs.values()))
    lines = [f"| {title} | goal | {' | '.join(runs)} |", f"| --- | --- |{' ---: |' * len(runs)}"]
    for row in rows:
        shown = [row.show(figures, first) for figures in runs.values()]
        if any(each != "-" for each in shown):
            lines.append(f"| {row.label} | {row.goal} | {' | '.join(shown)} |")
    return "\n".join(lines)
