"""The task at hand: a data set, its examples and its rationales, before any tokenizer.

`anyo_rl.reasoning.rows` turns its examples into what a teacher reads.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from anyo_rl.data.attributes import attribute_steps, item_attributes
from anyo_rl.data.fingerprint import fingerprint
from anyo_rl.data.load import load_interactions
from anyo_rl.data.past import GivenPast, Past, past_of, repeats
from anyo_rl.data.rationales import read_rationales
from anyo_rl.data.schema import EXAMPLES_SCHEMA, SPLITS, DataError, Example, Interactions, split_example_id
from anyo_rl.data.splits import k_core as keep_k_core
from anyo_rl.data.splits import make_examples
from anyo_rl.data.tables import PlainTable
from anyo_rl.data.toy.orders import OrderWorld, make_order_world, order_config
from anyo_rl.data.toy.routines import LONGEST_LAP
from anyo_rl.data.toy.world import ToyConfig, ToyWorld, make_toy_world
from anyo_rl.run.files import Tables
from anyo_rl.run.settings import Bounds, UsageError, mapping_of

TOY, ORDERS = "toy", "toy-orders"
COLUMN = '{"item_id": "asin"}'  # how a mapping of columns is given
World = ToyWorld | OrderWorld
HistoryAs = Literal["title", "item", "both"]
logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Which data, how it is split, and how it is shown to the teacher.

    Attributes:
        dataset: `toy` and `toy-orders` (embedded worlds), `ml-100k`, `office`, or the path of an interaction log.
    """

    dataset: str = field(
        default=TOY, metadata={"help": "toy, toy-orders, ml-100k, office, or the path of an interaction log."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of named data sets (ANYO_RL_DATA if unset).", "free": True}
    )
    items_path: str | None = field(default=None, metadata={"help": "Item file of a plain log."})
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Our column names to a plain log's: a mapping in YAML, JSON as a flag."}
    )
    item_columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Our column names (item_id, title) to the item file's; like columns."}
    )
    separator: str | None = field(
        default=None, metadata={"help": "Between the fields of a plain log; a comma if unset, a tab in .tsv."}
    )
    quoted: bool | None = field(
        default=None,
        metadata={"help": "Whether fields of text may stand in double quotes. Yes if unset, but not between tabs."},
    )
    split: Literal["users", "leave_one_out", "global_time", "given"] = field(
        default="users", metadata={"help": "How examples are held out."}
    )
    split_ratios: list[int] | None = field(
        default=None, metadata={"help": "Train : validation : test. 8 1 1 if unset; 2 1 1 on the toy world."}
    )
    k_core: int = field(
        default=0,
        metadata={"bounds": Bounds(0, 10**6), "help": "Keep users and items with at least this many events."},
    )
    min_history: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0, 10**6),
            "help": f"Shortest history of an example, in events. 1 if unset; {LONGEST_LAP} on the toy world.",
        },
    )
    max_history: int = field(
        default=50, metadata={"bounds": Bounds(1, 10**6), "help": "Longest history of an example, in events."}
    )
    train_targets: int | None = field(
        default=None,
        metadata={"bounds": Bounds(1), "help": "Most (latest) training examples of a user; all if unset."},
    )
    history_tokens: int = field(
        default=256, metadata={"bounds": Bounds(1, 10**7), "help": "Token budget of a history; the newest items stay."}
    )
    history_as: HistoryAs = field(
        default="title",
        metadata={
            "help": "What prompts show of an item: its title; the added tokens that item_tokens gives it; or both."
        },
    )
    prompt_style: Literal["text", "chat"] = field(default="text", metadata={"help": "Plain text or chat messages."})
    mask_history: bool = field(default=False, metadata={"help": "Leave out of rankings what the user chose before."})
    max_validation: int = field(
        default=300, metadata={"bounds": Bounds(1), "help": "Most validation examples used while training."}
    )
    max_test: int | None = field(
        default=None, metadata={"bounds": Bounds(1), "help": "Most test examples; all if unset.", "free": True}
    )
    rationale_share: float = field(
        default=ToyConfig.rationale_share,
        metadata={"bounds": Bounds(0, 1), "help": "Share of training users who have rationales."},
    )
    rationale_attributes: list[str] = field(
        default_factory=lambda: ["keywords"], metadata={"help": "Item attributes that rationales speak of."}
    )
    rationales_path: str | None = field(
        default=None,
        metadata={
            "help": "Rationales from here, not from attributes or the toy world, and of all their examples: a run "
            "folder of make_rationales, its paths table, or its data set."
        },
    )
    toy_users: int = field(
        default=ToyConfig.n_users, metadata={"bounds": Bounds(1, 10**7), "help": "Users of the toy world."}
    )
    toy_categories: int = field(
        default=ToyConfig.n_categories, metadata={"bounds": Bounds(1, 1000), "help": "Categories of the toy world."}
    )
    toy_noise: float = field(
        default=ToyConfig.noise, metadata={"bounds": Bounds(0, 1), "help": "Share of random events in the toy world."}
    )
    toy_dial: int = field(
        default=2,
        metadata={
            "bounds": Bounds(1, 4),
            "help": "Difficulty of toy-orders, 1 to 4: from where a direct answer wins to hopeless.",
        },
    )
    split_seed: int = field(
        default=0,
        metadata={"bounds": Bounds(0, 2**32 - 1), "help": "Seed of the toy world, of splits and of subsampling."},
    )


@dataclass(frozen=True)
class Task:
    """Data, examples and rationales, before any tokenizer.

    Attributes:
        interactions: the cleaned log.
        examples: the examples frame of `anyo_rl.data.splits.make_examples`.
        rationales: example id to one reasoning or more, each of steps, for those training examples that have them.
        args: the arguments it was made from, with defaults filled in (`split_ratios`, `min_history`).
        world: the embedded world, where the data is that.
    """

    interactions: Interactions
    examples: pl.DataFrame
    rationales: dict[str, list[tuple[str, ...]]]
    args: DataArguments
    world: World | None

    @property
    def report(self) -> dict[str, int]:
        """What cleaning found (`anyo_rl.data.clean`), examples of each split, and users who gave no example.

        Pre-made examples (split `given`) say nothing of the users who gave none.
        """
        examples = {f"{split}_examples": len(self.places(split)) for split in SPLITS}
        if self.args.split != "given":
            users = self.interactions.frame["user_id"].n_unique()
            examples["users_without_example"] = users - self.examples["user_id"].n_unique()
        return {**self.interactions.report, **examples}

    @property
    def ratios(self) -> tuple[int, int, int]:
        """Train : validation : test, as the examples were split."""
        return _ratios(self.args)

    def split(self, name: str, limit: int | None = None) -> pl.DataFrame:
        """The examples of a split; with a limit, that many drawn by the data seed, in their order."""
        return self.examples[self.places(name, limit)]

    def places(self, name: str, limit: int | None = None) -> np.ndarray:
        """The row numbers of these examples, which take a hundredth of their memory."""
        places = (self.examples["split"] == name).arg_true().to_numpy()
        if limit is None or limit >= len(places):
            return places
        chosen = np.random.default_rng(self.args.split_seed).choice(len(places), limit, replace=False)
        return places[np.sort(chosen)]

    @cached_property
    def table(self) -> pa.Table:
        """The columns of `Example` as an Arrow table that has the memory of `examples`: quick to look a row up in."""
        names = [field.name for field in dataclasses.fields(Example) if field.name in EXAMPLES_SCHEMA]
        return self.examples.select(names).to_arrow(compat_level=pl.CompatLevel.newest())

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What tells these data from other data: see `anyo_rl.data.fingerprint`."""
        return fingerprint(self.interactions, self.examples, self.rationales)

    @cached_property
    def past(self) -> Past | GivenPast:
        """What users had chosen before each example."""
        return past_of(self.interactions, self.args.split)

    def excluded(self, example_id: str) -> list[str]:
        """The items that rankings of an example leave out: all that its user had chosen before, if history is masked.

        Whatever the prompt shows of it, and whichever split it lies in; each once, in the order of their first coming.
        """
        return list(dict.fromkeys(self.past.before(example_id))) if self.args.mask_history else []

    def position(self, example_id: str) -> int:
        """How many events of the user came before the target; with split `given`, how many of the user's rows."""
        return split_example_id(example_id)[1]


def load_task(args: DataArguments, once: Callable[[Callable[[], Tables]], Tables] = lambda make: make()) -> Task:
    """Loads the data, splits it and gives a share of the training users their rationales.

    On the toy world these are the world's own, of the hidden intent; elsewhere they come from item attributes. With
    `rationales_path` they are those of the file, whoever the user is.

    Args:
        args: the data.
        once: makes the tables where the processes of a machine are to have them in common
            (`anyo_rl.run.shared.made_once`); all processes then call this together. Else each makes its own.

    Raises:
        DataError: the data or an argument cannot be used, or a split has no examples; says why and what to do.
    """
    args = _resolve(args)
    world = _world(args)
    interactions, examples = _of_tables(once(lambda: _tables(*_examples(args, world))))
    task = Task(interactions, examples, _rationales(interactions, examples, args, world), args, world)
    report = task.report
    n_train, n_validation, n_test = (report[f"{split}_examples"] for split in SPLITS)
    if not (n_train and n_validation and n_test):
        repeated = sum(report.get(f"{split}_repeats_left_out", 0) for split in SPLITS)
        told = f" ({repeated} of them were repeats, which mask_history leaves out)" if repeated else ""
        raise DataError(
            f"{interactions.name}: split {args.split} gives {n_train} train, {n_validation} validation and {n_test} "
            f"test examples{told}, expected at least one of each: take another split or other split_ratios, lower "
            f"min_history ({args.min_history}), or take a longer log"
        )
    found = ", ".join(f"{name} {count}" for name, count in report.items() if count)
    logger.info("%s: %s", interactions.name, found)
    return task


def _examples(args: DataArguments, world: World | None) -> tuple[Interactions, pl.DataFrame]:
    """The cleaned log and its examples."""
    interactions = world.interactions if world is not None else _load(args)
    if args.k_core:
        interactions = keep_k_core(interactions, args.k_core)
    assert args.min_history is not None, "filled in by _resolve"
    examples = make_examples(
        interactions,
        args.split,
        ratios=_ratios(args),
        min_history=args.min_history,
        max_history=args.max_history,
        train_targets="all" if args.train_targets is None else args.train_targets,
        seed=args.split_seed,
    )
    return _without_repeats(interactions, examples, args) if args.mask_history else (interactions, examples)


def _tables(interactions: Interactions, examples: pl.DataFrame) -> Tables:
    """All of it as tables."""
    note = pl.DataFrame({"name": interactions.name, "report": json.dumps(interactions.report)})
    given = {} if interactions.given is None else {"given": interactions.given}
    return {"events": interactions.frame, "items": interactions.items, "examples": examples, "note": note, **given}


def _of_tables(tables: Tables) -> tuple[Interactions, pl.DataFrame]:
    ((name, report),) = tables["note"].select("name", "report").rows()
    interactions = Interactions(tables["events"], tables["items"], json.loads(report), name, tables.get("given"))
    return interactions, tables["examples"]


def _without_repeats(
    interactions: Interactions, examples: pl.DataFrame, args: DataArguments
) -> tuple[Interactions, pl.DataFrame]:
    """Leaves out examples whose target the user had chosen before, and counts them: no masked ranking could have it.

    To rank such a target all the same, since it is one, would tell a model something.
    """
    repeated = pl.Series(repeats(examples, interactions, past_of(interactions, args.split)), dtype=pl.Boolean)
    counts = {f"{split}_repeats_left_out": int((repeated & (examples["split"] == split)).sum()) for split in SPLITS}
    return dataclasses.replace(interactions, report=interactions.report | counts), examples.filter(~repeated)


def _ratios(args: DataArguments) -> tuple[int, int, int]:
    if args.split_ratios is None:
        return (2, 1, 1) if args.dataset in (TOY, ORDERS) else (8, 1, 1)
    train, validation, test = args.split_ratios
    return train, validation, test


def _world(args: DataArguments) -> World | None:
    """The embedded world that the data is, if it is one."""
    try:
        if args.dataset == ORDERS:
            shared = {"n_users": args.toy_users, "rationale_share": args.rationale_share, "seed": args.split_seed}
            world = make_order_world(order_config(args.toy_dial, **shared))
            if world.longest > args.max_history + 1:
                raise ValueError(
                    f"max_history is {args.max_history}, and users of this world have up to {world.longest} events, "
                    "of which the first ones have to be seen: set it to as many"
                )
            return world
        if args.dataset != TOY:
            return None
        config = ToyConfig(
            n_users=args.toy_users,
            n_categories=args.toy_categories,
            noise=args.toy_noise,
            rationale_share=args.rationale_share,
            seed=args.split_seed,
        )
    except ValueError as error:  # says which is out of its range
        raise DataError(str(error)) from None
    return make_toy_world(config)


def _load(args: DataArguments) -> Interactions:
    try:
        columns, item_columns = (mapping_of(n, getattr(args, n), COLUMN) for n in ("columns", "item_columns"))
    except UsageError as error:
        raise DataError(str(error)) from None
    return load_interactions(
        args.dataset,
        data_dir=args.data_dir,
        items_path=args.items_path,
        table=PlainTable(
            columns,
            item_columns,
            args.separator,
            args.quoted,
        ),
    )


def _resolve(args: DataArguments) -> DataArguments:
    """The arguments with defaults filled in.

    Raises:
        DataError: one is out of its range, or does not go with the toy world.
    """
    toy = args.dataset in (TOY, ORDERS)
    if args.dataset == ORDERS and args.train_targets is None:
        args = dataclasses.replace(args, train_targets=1)  # the last event alone is a purchase for sure
    if args.split_ratios is None:
        args = dataclasses.replace(args, split_ratios=list(_ratios(args)))
    if args.min_history is None:
        shown = {TOY: ToyWorld.least_history, ORDERS: OrderWorld.least_history}
        args = dataclasses.replace(args, min_history=shown.get(args.dataset, 1))
    ratios = args.split_ratios or []
    if len(ratios) != 3 or min(ratios) < 0 or ratios[0] == 0:
        raise DataError(
            f"split_ratios is {ratios}: expected three numbers, for train, validation and test, none negative and the "
            "first above 0"
        )
    least = {"k_core": 0, "min_history": 0, "max_history": 1, "train_targets": 1, "history_tokens": 1}
    for name, low in {**least, "max_validation": 1, "max_test": 1}.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise DataError(f"{name} is {value}: expected {low} or more, or leave it out")
    if not 0 <= args.rationale_share <= 1:
        raise DataError(f"rationale_share is {args.rationale_share}: expected 0 to 1, a share of the training users")
    if toy and args.k_core:
        raise DataError(
            f"k_core is {args.k_core}, but the toy world's rationales and oracles count every event: leave k_core out"
        )
    return args


def _rationales(
    interactions: Interactions, examples: pl.DataFrame, args: DataArguments, world: World | None
) -> dict[str, list[tuple[str, ...]]]:
    in_train = examples.lazy().filter(pl.col("split") == "train")
    if args.rationales_path is not None:
        targets = dict(in_train.select("example_id", "target_id").collect().iter_rows())
        found: dict[str, list[tuple[str, ...]]] = {}
        for example_id, steps in read_rationales(Path(args.rationales_path), targets):
            found.setdefault(example_id, []).append(steps)
        return found
    if world is not None:
        return {
            example_id: [world.rationale(user, position)]
            for example_id, user in in_train.select("example_id", "user_id").collect().iter_rows()
            if world.has_rationale(user) and (position := split_example_id(example_id)[1]) >= world.least_history
        }
    users = np.array(in_train.select(pl.col("user_id").unique(maintain_order=True)).collect()["user_id"].to_list())
    drawn = np.random.default_rng(args.split_seed).permutation(users)[: round(args.rationale_share * len(users))]
    chosen = in_train.filter(pl.col("user_id").is_in(drawn.tolist()))
    rows = chosen.select("example_id", "history", "target_id").collect().iter_rows()
    attributes = item_attributes(interactions.items, args.rationale_attributes)
    return {example_id: [attribute_steps(attributes, history, target)] for example_id, history, target in rows}
