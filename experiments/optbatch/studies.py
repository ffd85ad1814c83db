"""The two models, what they are trained on, and the ways of choosing that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from demo.fetch import fetch_model
from torch import nn

from experiments.pools.mixed import make_mixed
from experiments.textgames.data import FIRST_TRAINING, KINDS, Sizes, first_model, make_data
from pursuit.encoding import EncodedPool, Encoder, encode_pool
from pursuit.evaluate import EvalSet, read_eval_set
from pursuit.files import write_text
from pursuit.finetune import FineTune
from pursuit.models.loading import load_model, load_tokenizer
from pursuit.models.trainable import prepare_trainable
from pursuit.online import BatchSelector, batch_selection
from pursuit.pool import Pool
from pursuit.recipes import Lora

GAMES = Sizes(train_games=40, first_games=20, clean=176, wrong=0, copies=0, eval_rows=30, eval_games=10)
FIRST = replace(FIRST_TRAINING, max_steps=120)
MIXED_ROWS, MIXED_EVAL_ROWS, CHARACTERS = 400, 6, 140
FAMILIES = (
    "object_counting", "hyperbaton", "implicatures", "strategyqa", "social_support", "tense",
    "unit_conversion/unit_addition_same", "spell_backward", "anachronisms", "reasoning_about_colored_objects",
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to choose, and its pruning rate."""

    name: str
    prune: float = 0.0

    @property
    def label(self) -> str:
        return self.name if self.name == "full" else f"{self.name} {self.prune:g}"

    def selector(self, seed: int) -> BatchSelector:
        """With its default settings but for the rate."""
        return batch_selection(self.name, prune=self.prune, seed=seed)


@dataclass(frozen=True)
class Study:
    """One model on one pool.

    Attributes:
        about: in words, for the table.
        lora: None trains all weights.
        recipe: of the equal-steps trainings; `max_steps` is S, `batch_size` the candidates B.
        costed: selectors that are compared with training on all at equal steps and at equal cost; `others`: at equal
            steps only.
        rates: pruning rates, those that matter most first.
        pool, heldout: JSONL files of conversations.
    """

    name: str
    about: str
    model: Path
    lora: Lora | None
    recipe: FineTune
    costed: tuple[str, ...]
    others: tuple[str, ...]
    rates: tuple[float, ...]
    pool: Path
    heldout: tuple[Path, ...]
    max_length: int
    template: str | None = None

    def first_model(self, seed: int) -> nn.Module:
        """The model before training; `seed` draws a LoRA's first weights."""
        loaded = load_model(str(self.model), dtype="float32", device="cpu")
        if self.lora is None:
            return prepare_trainable(loaded, weights=["*"])
        return prepare_trainable(loaded, lora=self.lora, seed=seed)

    def rows(self, folder: Path) -> tuple[EncodedPool, EvalSet]:
        """Tokens of the pool, and the held-out rows."""
        tokenizer = load_tokenizer(str(self.model))
        encoder = Encoder(tokenizer, max_length=self.max_length, chat_template=self.template)
        held = [str(path) for path in self.heldout]
        return (
            encode_pool(Pool([str(self.pool)], on_bad_row="skip"), encoder, folder / "encoded"),
            read_eval_set(held, tokenizer, max_length=self.max_length, chat_template=self.template),
        )


def textgames(folder: Path) -> Study:
    """All weights of a small Llama, on new steps of games that it has begun to learn."""
    data = make_data(folder / "data", GAMES)
    return Study(
        name="textgames",
        about="A Llama of 0.9 million weights, all of them trained, on steps of text games; it was trained before on "
        "steps of other games of these kinds",
        model=first_model(data, folder / "first", GAMES.max_length, FIRST), lora=None,
        recipe=FineTune(
            max_steps=32, batch_size=16, learning_rate=1e-3, schedule="linear", warmup_ratio=0.1,
            micro_batch_tokens=1024, recovery_seconds=1e9,
        ),
        costed=("random", "optbatch"), others=("hardest", "infobatch"), rates=(0.5, 0.7, 0.2),
        pool=data / "pool.jsonl",
        heldout=tuple(data / f"eval-{kind}.jsonl" for kind in KINDS), max_length=GAMES.max_length,
    )  # fmt: skip


def smollm2(folder: Path) -> Study:
    """A LoRA on SmolLM2, on short rows of the mixed pool."""
    data = folder / "data"
    if not (data / "about.json").exists():
        make_mixed(
            data, MIXED_ROWS, eval_rows=MIXED_EVAL_ROWS, target_rows=1, families=FAMILIES, max_characters=CHARACTERS
        )
    return Study(
        name="smollm2",
        about="SmolLM2-135M-Instruct, a LoRA of rank 8 on its attention projections, on short rows of the mixed pool",
        model=fetch_model(), lora=Lora(rank=8, alpha=32, dropout=0.0),
        recipe=FineTune(
            max_steps=12, batch_size=8, learning_rate=1e-3, schedule="linear", warmup_ratio=0.1,
            micro_batch_tokens=512, recovery_seconds=1e9,
        ),
        costed=("random", "optbatch"), others=("hardest",), rates=(0.5, 0.7, 0.2),
        pool=data / "pool.jsonl", heldout=(data / "eval.jsonl",), max_length=256, template="chatml",
    )  # fmt: skip


def smollm2_epochs(folder: Path) -> Study:
    """The same, twice through a quarter of the rows: InfoBatch leaves out nothing in a first epoch."""
    study = smollm2(folder)
    return replace(
        study, name="smollm2-epochs", about=study.about + ", twice through 96 of them",
        recipe=replace(study.recipe, max_steps=24), costed=("random", "optbatch"), others=("hardest", "infobatch"),
        rates=(0.5,), pool=_first_rows(study.pool, 96),
    )  # fmt: skip


def _first_rows(pool: Path, count: int) -> Path:
    path = pool.with_name(f"pool-{count}.jsonl")
    write_text(path, "".join(pool.read_text(encoding="utf-8").splitlines(keepends=True)[:count]))
    return path


STUDIES = {"textgames": textgames, "smollm2": smollm2, "smollm2-epochs": smollm2_epochs}
