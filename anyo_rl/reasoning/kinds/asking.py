"""A kind of reasoning and the data of a run together: what each prompt shows, and what SFT starts from."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.attributes import item_attributes
from anyo_rl.data.schema import EXAMPLE_ID, HISTORY, TARGET_ID, TRAIN, USER_ID, Example
from anyo_rl.data.task import HistoryAs, Task
from anyo_rl.evidence.companions import Companions
from anyo_rl.reasoning.kinds.candidates import Listed, Question
from anyo_rl.reasoning.kinds.kind import Asked, Hindsight, Kind, Sources, as_given, nothing
from anyo_rl.reasoning.kinds.questions import Questions
from anyo_rl.reasoning.kinds.typed import read_typed
from anyo_rl.reasoning.prompts import Section, Shown, Words

logger = logging.getLogger(__name__)


def shown(catalog: Catalog, item_id: str, how: HistoryAs) -> Shown:
    """An item as prompts show it: its title, the added tokens that it goes by, or both."""
    item = catalog.index[item_id]
    return Shown("" if how == "item" else catalog.titles[item], "" if how == "title" else catalog.added_tokens(item))


@dataclass(frozen=True)
class Asking:
    """How a run asks its teachers.

    Attributes:
        kind: of reasoning.
        task: the data.
        questions: about candidates, of kinds that answer with an order or yes and no.
    """

    kind: Kind
    task: Task
    questions: Questions | None = None

    @cached_property
    def sources(self) -> Sources:
        """What is known of the items, and what other users chose."""
        args, items = self.task.args, self.task.interactions.items
        return Sources(item_attributes(items, args.rationale_attributes), Companions(self.task, seed=args.split_seed))

    @cached_property
    def _titles(self) -> dict[str, str]:
        return dict(self.task.interactions.items.select("item_id", "title").iter_rows())

    @cached_property
    def _training(self) -> frozenset[str]:
        return frozenset(self.task.split(TRAIN)[EXAMPLE_ID].to_list())

    @property
    def listed(self) -> Listed:
        """The settings of candidates, of a kind that is asked about these."""
        assert self.kind.listed is not None, "the kind answers with an item"
        return self.kind.listed

    def question(self, example: Mapping[str, Any]) -> Question | None:
        """What an example is asked about candidates, of its columns; `None` where it is asked for an item."""
        return None if self.questions is None else self.questions.of(example)

    def asked(
        self, example: Mapping[str, Any], catalog: Catalog | None = None, question: Question | None = None
    ) -> Asked:
        """What the kind may look at.

        Args:
            example: columns of an example; its target is not looked at.
            catalog: of the teacher that is asked; `None` where there is none yet, and items go by their titles.
            question: about candidates.
        """
        example_id = example[EXAMPLE_ID]
        return Asked(
            example_id=example_id,
            user_id=example[USER_ID],
            history=tuple(example[HISTORY]),
            past=tuple(self.task.past.before(example_id)),
            excluded=tuple(self.task.excluded(example_id)),
            training=example_id in self._training,
            shown=partial(self._shown, catalog),
            sources=self.sources,
            listed=() if question is None else question.listed,
            scores=() if question is None else question.scores,
        )

    def asked_anew(self, example: Example, catalog: Catalog) -> Asked:
        """The same of an example that is none of the task's, whose history is all that the user had chosen before."""
        return Asked(
            example_id=example.example_id,
            user_id=example.user_id,
            history=tuple(example.history[-self.task.args.max_history :]),
            past=tuple(example.history),
            excluded=tuple(example.excluded),
            training=False,
            shown=partial(self._shown, catalog),
            sources=self.sources,
        )

    def _shown(self, catalog: Catalog | None, item_id: str) -> Shown:
        if catalog is None:
            return Shown(self._titles[item_id])
        return shown(catalog, item_id, self.task.args.history_as)

    def sections(
        self, example: Mapping[str, Any], catalog: Catalog, question: Question | None = None
    ) -> Sequence[Section]:
        """What the prompt of an example shows above its history."""
        return self.kind.show(self.asked(example, catalog, question)) if self.shows else ()

    def words(self, example: Mapping[str, Any]) -> Words:
        """Our words in the prompt of an example."""
        return self.kind.words if self.kind.words_of is None else self.kind.words_of(self.asked(example))

    @property
    def shows(self) -> bool:
        """Whether prompts show more than the history."""
        return self.kind.show is not nothing

    def prepare(self, folder: Path) -> None:
        """Keeps what the kind makes once, in a folder of the run."""
        if self.kind.prepare is not None:
            examples = self.task.examples.select(EXAMPLE_ID, USER_ID, HISTORY).iter_rows(named=True)
            self.kind.prepare(folder, [self.asked(example) for example in examples])


def taught(task: Task, kind: Kind) -> Task:
    """The task with the rationales that a kind writes, of the same examples.

    Those that were read from a file (`--rationales_path`) stay as they are: somebody wrote them for the kind. How many
    of them have not its typed steps is logged.
    """
    if task.args.rationales_path is not None:
        given = [steps for of_example in task.rationales.values() for steps in of_example]
        other = sum(bool(kind.step_names) and not read_typed(steps, kind.step_names).in_form for steps in given)
        if other:
            told = f"{', '.join(kind.step_names)}, once each and in order"
            logger.warning("%d of %d rationales have not the steps of %s: %s", other, len(given), kind.name, told)
        return task
    if kind.write is as_given:
        return task
    asking, world = Asking(kind, task), task.world
    wanted = task.examples.filter(task.examples[EXAMPLE_ID].is_in(list(task.rationales)))
    rationales = {}
    for example in wanted.select(EXAMPLE_ID, USER_ID, HISTORY, TARGET_ID).iter_rows(named=True):
        asked, of_example = asking.asked(example), task.rationales[example[EXAMPLE_ID]]
        intent = world.intent(example[USER_ID], task.position(example[EXAMPLE_ID])) if world is not None else None
        written = (kind.write(asked, Hindsight(example[TARGET_ID], steps, intent)) for steps in of_example)
        rationales[example[EXAMPLE_ID]] = list(dict.fromkeys(written))
    return dataclasses.replace(task, rationales=rationales)
