"""Train the small CLIPTextModel to place words and sentences where all-MiniLM-L6-v2 places them."""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.corpus import build_sentences, read_synonyms, read_words, split_words
from training.dataset import read_folders
from training.parts import place, save_half
from training.progress import (
    Budget,
    choose_device,
    descend,
    half_precision,
    learning_rate,
    set_learning_rate,
    set_seed,
)
from training.teacher import Teacher, find_teacher
from training.tokens import END, MAX_TOKENS, START, train_tokenizer


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Sizes of the encoder and of a step."""

    width: int = 256
    layers: int = 3
    vocabulary: int = 6144
    sentences: int = 400_000
    batch: int = 1024
    peak_rate: float = 1.5e-3


@dataclass(frozen=True, slots=True)
class Lesson:
    """Tokens of all sentences, and where each token's target stands.

    Attributes:
        tokens: int64 (N, 32).
        targets: int32 (N, 32), a row of `vectors`; -1 where nothing is asked (the start, inner word pieces).
        vectors: float (M, width), the teacher's vectors, rotated and scaled to unit variance.
    """

    tokens: Tensor
    targets: Tensor
    vectors: Tensor


def build_text_encoder(tokenizer: CLIPTokenizer, options: TextOptions) -> CLIPTextModel:
    """As CLIP's: causal, so that the end token and all padding behind it have read the whole sentence."""
    vocabulary = tokenizer.get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=options.width * 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=options.width,
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )
    return CLIPTextModel(config)


def build_lesson(sentences: list[str], tokenizer: CLIPTokenizer, teacher: Teacher, width: int) -> Lesson:
    """Ask the last piece of each word for the word's own vector, and the end and padding for the sentence's."""
    encoded = tokenizer.backend_tokenizer.encode_batch(sentences)
    words = sorted({word for sentence in sentences for word in split_words(sentence)})
    rows = {word: len(sentences) + index for index, word in enumerate(words)}
    vocabulary = tokenizer.get_vocab()
    start, end = vocabulary[START], vocabulary[END]
    tokens = torch.full((len(sentences), MAX_TOKENS), end)
    targets = torch.full((len(sentences), MAX_TOKENS), -1, dtype=torch.int32)
    for index, (sentence, item) in enumerate(zip(sentences, encoded, strict=True)):
        ids = [i for i in item.ids if i not in (start, end)][: MAX_TOKENS - 2]
        tokens[index, : len(ids) + 1] = torch.tensor([start, *ids])
        targets[index, len(ids) + 1 :] = index
        for position, row in _word_ends(sentence.lower(), item.offsets, item.special_tokens_mask, rows):
            if position < len(ids):
                targets[index, position + 1] = row
    return Lesson(tokens, targets, _rotate(teacher.embed([*sentences, *words]), width))


def _word_ends(
    sentence: str, offsets: list[tuple[int, int]], special: list[int], rows: dict[str, int]
) -> list[tuple[int, int]]:
    """(position among the ordinary tokens, row of the word's vector) for the last piece of each known word."""
    spans = [span for span, skip in zip(offsets, special, strict=True) if not skip]
    ends, start = list[tuple[int, int]](), 0
    for position, (left, right) in enumerate(spans):
        if position and (left != spans[position - 1][1] or not sentence[left - 1].isalpha()):
            start = position
        last = right >= len(sentence) or not sentence[right].isalpha()
        word = sentence[spans[start][0] : right]
        if last and word in rows:
            ends.append((position, rows[word]))
    return ends


def _rotate(vectors: Tensor, width: int) -> Tensor:
    """Principal components, so that distances survive at the smaller width; unit variance on average."""
    centred = vectors - vectors.mean(0)
    sample = centred[torch.randperm(len(centred))[:60_000]]
    _, spread, axes = cast(
        tuple[Tensor, Tensor, Tensor],
        torch.linalg.svd(sample.T @ sample / len(sample)),  # pyright: ignore[reportUnknownMemberType]
    )
    width = min(width, len(axes))
    print(f"{width} of {len(axes)} axes keep {spread[:width].sum() / spread.sum():.3f} of the variance")
    rotated = centred @ axes[:width].T
    return rotated / rotated.std()


def train(
    lesson: Lesson, model: CLIPTextModel, budget: Budget, options: TextOptions, device: torch.device
) -> None:
    """Regress the states; words and sentences count the same."""
    place(model, device)
    tokens, targets, vectors = lesson.tokens.to(device), lesson.targets.to(device), lesson.vectors.to(device)

    def measure() -> Tensor:
        chosen = torch.randint(len(tokens), (options.batch,), device=device)
        return _loss(model, tokens[chosen], targets[chosen], vectors)

    regress(model, measure, budget, options.peak_rate)


def regress(model: CLIPTextModel, measure: Callable[[], Tensor], budget: Budget, peak_rate: float) -> None:
    """Descend on the loss of a batch, which `measure` draws, until the time is over."""
    optimizer = torch.optim.AdamW(model.train().parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in budget.steps():
        set_learning_rate(optimizer, learning_rate(peak_rate, step, budget.fraction, decay_from=0.3))
        loss = measure()
        descend(loss, optimizer, model, largest_norm=1.0)
        if step % 200 == 0:
            print(f"step {step} {budget.elapsed:.0f}s loss {loss.item():.4f}", flush=True)


def _loss(model: CLIPTextModel, tokens: Tensor, targets: Tensor, vectors: Tensor) -> Tensor:
    with half_precision(tokens.device):
        states = model(tokens).last_hidden_state
    error = (states.float() - vectors[targets.clamp(min=0)]).square().mean(-1)
    padding = tokens == tokens[:, -1:]  # the end token stands at least once, and is the padding too
    word, sentence = (targets >= 0) & ~padding, (targets >= 0) & padding
    return error[sentence].mean() + error[word].mean()


@torch.no_grad()
def report(model: CLIPTextModel, tokenizer: CLIPTokenizer, teacher: Teacher, device: torch.device) -> None:
    """How many of the 40 unseen synonyms lie nearest to a word of their own category, here and at the teacher's."""
    model.eval()
    words = [word for word, _, _ in read_synonyms()]
    twins = list(dict.fromkeys(twin for _, twin, _ in read_synonyms()))
    ours = embed_end(model, tokenizer, [*twins, *words], device).cpu()
    for name, vectors in (("ours", ours), ("teacher", teacher.embed([*twins, *words]))):
        print(f"{name}: {_count_hits(functional.normalize(vectors, dim=-1), twins)}")


def _count_hits(vectors: Tensor, twins: list[str]) -> str:
    synonyms = read_synonyms()
    categories = {twin: category for _, twin, category in synonyms}
    nearest: list[int] = (vectors[len(twins) :] @ vectors[: len(twins)].T).argmax(1).numpy().tolist()
    found = [
        (word, twins[near], categories[twins[near]] == category)
        for near, (word, _, category) in zip(nearest, synonyms, strict=True)
    ]
    misses = ", ".join(f"{word}->{twin}" for word, twin, hit in found if not hit)
    return f"{sum(hit for *_, hit in found)} of {len(found)} synonyms lie nearest to their category; not {misses}"


@torch.no_grad()
def embed_end(
    model: CLIPTextModel, tokenizer: CLIPTokenizer, sentences: list[str], device: torch.device
) -> Tensor:
    """The last state of each sentence, (N, width)."""
    return embed_text(model, tokenizer, sentences, device)[:, -1].float()


@torch.no_grad()
def embed_text(
    model: CLIPTextModel, tokenizer: CLIPTokenizer, sentences: list[str], device: torch.device
) -> Tensor:
    """All states, (N, 32, width), as StableDiffusionPipeline gives them to the denoiser."""
    return model(tokenize(sentences, tokenizer).to(device)).last_hidden_state


def tokenize(sentences: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """As StableDiffusionPipeline does: int64 (N, 32), the end token as padding."""
    encoded = tokenizer(
        sentences, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    return cast(Tensor, encoded["input_ids"])


def make(
    folders: list[Path], teacher_folder: Path, out: Path, seconds: float, options: TextOptions, seed: int
) -> None:
    """Build the sentences, train, report, and write `out/text_encoder/` and `out/tokenizer/`."""
    device = choose_device()
    set_seed(seed)
    rng = random.Random(seed)
    captions = sorted({picture.caption.lower() for picture in read_folders(folders) if not picture.held_out})
    teacher = Teacher(teacher_folder, device)
    general = teacher.vocabulary()
    own = [*read_words("surfaces"), *read_words("qualities"), *read_words("colours")]
    tokenizer = train_tokenizer(
        [w for c in captions for w in split_words(c)] + own, general, options.vocabulary
    )
    lesson = build_lesson(
        build_sentences(captions, general, options.sentences, rng), tokenizer, teacher, options.width
    )
    model = build_text_encoder(tokenizer, options)
    train(lesson, model, Budget(seconds), options, device)
    report(model, tokenizer, teacher, device)
    save_half(model, out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")  # pyright: ignore[reportUnknownMemberType]


def main() -> None:
    """Command line: `python -m training.text_encoder SHARD [SHARD ...] --out OUT --seconds 120`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="folder of all-MiniLM-L6-v2; default: the package's")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--sentences", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    sizes = TextOptions(sentences=options.sentences, batch=options.batch)
    make(options.shards, options.teacher or find_teacher(), options.out, options.seconds, sizes, options.seed)


if __name__ == "__main__":
    main()
