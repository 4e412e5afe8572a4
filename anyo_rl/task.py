"""The task at hand: a data set, its examples, its rationales, and what a teacher reads.

A `Task` is made once from the data; `rows` turns its examples into prompts for a catalog and tokenizer, as plain
dicts with TRL's column names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.load import load_interactions
from anyo_rl.data.prompts import fit_history, render_prompt
from anyo_rl.data.schema import Interactions
from anyo_rl.data.splits import k_core as keep_k_core
from anyo_rl.data.splits import make_examples
from anyo_rl.data.toy import ToyConfig, ToyWorld, make_toy_world
from anyo_rl.data.toy_routines import LONGEST_LAP
from anyo_rl.rationale.attributes import attribute_steps, item_attributes
from anyo_rl.tokens import Tokens

TOY = "toy"
Row = dict[str, Any]


@dataclass
class DataArguments:
    """Which data, how it is split, and how it is shown to the teacher.

    Attributes:
        dataset: `toy` (the embedded world), `ml-100k`, `office`, or the path of an interaction log.
    """

    dataset: str = field(default=TOY, metadata={"help": "toy, ml-100k, office, or the path of an interaction log."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of named data sets (ANYO_RL_DATA if unset)."})
    items_path: str | None = field(default=None, metadata={"help": "Item file of a plain log."})
    columns: dict[str, str] | None = field(default=None, metadata={"help": "Column names of a plain log."})
    split: Literal["users", "leave_one_out", "global_time", "given"] = field(
        default="users", metadata={"help": "How examples are held out."}
    )
    split_ratios: list[int] = field(default_factory=lambda: [8, 3, 4], metadata={"help": "Train : validation : test."})
    k_core: int = field(default=0, metadata={"help": "Keep users and items with at least this many events."})
    min_history: int = field(default=LONGEST_LAP, metadata={"help": "Shortest history of an example, in events."})
    max_history: int = field(default=50, metadata={"help": "Longest history of an example, in events."})
    train_targets: int | None = field(
        default=None, metadata={"help": "Most (latest) training examples of a user; all if unset."}
    )
    history_tokens: int = field(default=256, metadata={"help": "Token budget of a history; the newest items stay."})
    prompt_style: Literal["text", "chat"] = field(default="text", metadata={"help": "Plain text or chat messages."})
    mask_history: bool = field(default=False, metadata={"help": "Leave items of the history out of rankings."})
    max_validation: int = field(default=300, metadata={"help": "Most validation examples used while training."})
    max_test: int | None = field(default=None, metadata={"help": "Most test examples; all if unset."})
    rationale_share: float = field(default=0.33, metadata={"help": "Share of training users who have rationales."})
    rationale_attributes: list[str] = field(
        default_factory=lambda: ["keywords"], metadata={"help": "Item attributes that rationales speak of."}
    )
    toy_users: int = field(default=1500, metadata={"help": "Users of the toy world."})
    toy_categories: int = field(default=9, metadata={"help": "Categories of the toy world."})
    toy_noise: float = field(default=0.1, metadata={"help": "Share of random events in the toy world."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the toy world, of splits and of subsampling."})


@dataclass(frozen=True)
class Task:
    """Data, examples and rationales, before any tokenizer.

    Attributes:
        interactions: the cleaned log.
        examples: the examples frame of `anyo_rl.data.splits.make_examples`.
        rationales: example id to steps, for those training examples that have them.
        args: the arguments it was made from.
        world: the toy world, where the data is that.
    """

    interactions: Interactions
    examples: pl.DataFrame
    rationales: dict[str, tuple[str, ...]]
    args: DataArguments
    world: ToyWorld | None

    def split(self, name: str, limit: int | None = None) -> pl.DataFrame:
        """The examples of a split; with a limit, that many drawn by the data seed, in their order."""
        frame = self.examples.filter(pl.col("split") == name)
        if limit is None or limit >= len(frame):
            return frame
        chosen = np.random.default_rng(self.args.split_seed).choice(len(frame), limit, replace=False)
        return frame[np.sort(chosen)]

    def prompt(self, history: Sequence[str], catalog: Catalog, tokens: Tokens) -> Any:
        """What the teacher reads for a history of item ids: the newest titles that fit the budget."""
        titles = [catalog.titles[catalog.index[item]] for item in history]
        kept = fit_history(
            titles, lambda lines: [tokens.n_text_tokens(line) for line in lines], self.args.history_tokens
        )
        return render_prompt(kept, self.args.prompt_style)

    def rows(self, examples: pl.DataFrame, catalog: Catalog, tokens: Tokens) -> list[Row]:
        """Examples as rows: example_id, user_id, prompt, history, target_id, cold_item, cold_user."""
        return [
            {
                "prompt": self.prompt(row["history"], catalog, tokens),
                **{name: row[name] for name in ("example_id", "user_id", "history", "target_id")},
                **{name: row[name] for name in ("cold_item", "cold_user")},
            }
            for row in examples.iter_rows(named=True)
        ]

    def texts(self) -> list[str]:
        """What a tokenizer made for this task should know well: titles, prompts and rationales."""
        titles = self.interactions.items["title"].to_list()
        prompt = render_prompt(titles[:1], "text")
        return [*[f" {t}" for t in titles], *titles, *[prompt] * 10, *["\n".join(s) for s in self.rationales.values()]]

    def position(self, example_id: str) -> int:
        """How many events of the user came before the target."""
        return int(example_id.rsplit(":", 1)[1])


def load_task(args: DataArguments) -> Task:
    """Loads the data, splits it and gives a share of the training users their rationales.

    On the toy world these are the world's own, of the hidden intent; elsewhere they come from item attributes.

    Raises:
        DataError: the data cannot be used, or a split has no examples; the message says why and what to do.
    """
    world = None
    if args.dataset == TOY:
        world = make_toy_world(
            ToyConfig(
                n_users=args.toy_users,
                n_categories=args.toy_categories,
                noise=args.toy_noise,
                rationale_share=args.rationale_share,
                seed=args.split_seed,
            )
        )
        interactions = world.interactions
    else:
        data_dir = Path(args.data_dir) if args.data_dir else None
        interactions = load_interactions(
            args.dataset, data_dir=data_dir, columns=args.columns, items_path=args.items_path
        )
    if args.k_core:
        interactions = keep_k_core(interactions, args.k_core)
    examples = make_examples(
        interactions,
        args.split,
        ratios=(args.split_ratios[0], args.split_ratios[1], args.split_ratios[2]),
        min_history=args.min_history,
        max_history=args.max_history,
        train_targets=args.train_targets or "all",
        seed=args.split_seed,
    )
    return Task(interactions, examples, _rationales(interactions, examples, args, world), args, world)


def _rationales(
    interactions: Interactions, examples: pl.DataFrame, args: DataArguments, world: ToyWorld | None
) -> dict[str, tuple[str, ...]]:
    train = examples.filter(pl.col("split") == "train")
    rows = train.select("example_id", "user_id", "history", "target_id").iter_rows(named=True)
    if world is not None:
        return {
            row["example_id"]: world.rationale(row["user_id"], position)
            for row in rows
            if world.has_rationale(row["user_id"])
            and (position := int(row["example_id"].rsplit(":", 1)[1])) >= LONGEST_LAP
        }
    users = np.array(train["user_id"].unique(maintain_order=True).to_list())
    drawn = np.random.default_rng(args.split_seed).permutation(users)[: round(args.rationale_share * len(users))]
    chosen = set(drawn.tolist())
    attributes = item_attributes(interactions.items, args.rationale_attributes)
    return {
        row["example_id"]: attribute_steps(attributes, row["history"], row["target_id"])
        for row in rows
        if row["user_id"] in chosen
    }
