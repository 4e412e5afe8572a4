"""The tree of a search: its root is the prompt, each node a step more, or a whole reasoning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from anyo_rl.sampling.protocol import Sample
from anyo_rl.teacher.tokens import Tokens

ROOT = 0


@dataclass
class Node:
    """A reasoning so far.

    Attributes:
        parent: its number; −1 for the root.
        sample: what was written in this step.
        finished: whether nothing may follow: the marker was written, or there is no room for more.
        whole: whether it is a whole reasoning, answered as it stands, and no step that ends in a line break.
        name: by which draws lead to it, such as `2.0`: what the draws below it are told apart by.
        text: of the step, as people see it.
        value: what the reasoning is worth so far, in [0, 1]; `None` where nobody asked.
        draws: how often the very same step was drawn here.
        visits: of Monte Carlo tree search.
        total: sum of the values backed up by these visits.
    """

    parent: int
    sample: Sample
    finished: bool = False
    whole: bool = False
    name: str = ""
    text: str = ""
    value: float | None = None
    draws: int = 1
    visits: int = 0
    total: float = 0.0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of this step."""
        return self.sample.token_ids


@dataclass
class Tree:
    """What a search of one user has written, and what it spent.

    Attributes:
        example_id: of the user's example.
        context: token ids of the prompt.
        nodes: the root first; parents come before their children.
        n_tokens: tokens written, those of steps that were drawn twice included.
        n_nodes: tree nodes of the catalog that were read for values, over all states.
        asked: how many steps were drawn from each node.
    """

    example_id: str
    context: list[int]
    nodes: list[Node] = field(default_factory=list)
    n_tokens: int = 0
    n_nodes: int = 0
    asked: dict[int, int] = field(default_factory=dict)

    def above(self, node: int) -> Iterator[int]:
        """The node, its parent, and so on; without the root."""
        while node > ROOT:
            yield node
            node = self.nodes[node].parent

    def children(self, node: int) -> list[int]:
        """Numbers of a node's children, as they were drawn."""
        return [number for number, child in enumerate(self.nodes) if child.parent == node]

    def reasoning(self, node: int) -> list[int]:
        """Token ids of all that was written on the way to a node."""
        way = [*self.above(node)][::-1]
        return [*self.nodes[ROOT].token_ids, *(token for number in way for token in self.nodes[number].token_ids)]

    def sample(self, node: int) -> Sample:
        """The way to a node as one completion."""
        way = [self.nodes[number].sample for number in [*self.above(node)][::-1]] or [self.nodes[ROOT].sample]
        known = [one.log_probs for one in way if one.log_probs is not None]
        log_probs = tuple(value for one in known for value in one) if len(known) == len(way) else None
        opening = self.nodes[ROOT].token_ids if node != ROOT else ()
        if opening and log_probs is not None:  # it was not drawn
            log_probs = (*[0.0] * len(opening), *log_probs)
        return Sample((*opening, *(t for one in way for t in one.token_ids)), log_probs, way[-1].finish_reason)

    def steps(self, node: int) -> tuple[str, ...]:
        """Texts of the steps on the way to a node, as people see them."""
        texts = [self.nodes[number].text for number in [*self.above(node)][::-1]]
        return tuple(line for text in texts for line in text.splitlines() if line)

    def value(self, node: int) -> float:
        """What a node is worth; of one that nobody valued, what the last valued one above it is worth, or 0."""
        for number in self.above(node):
            value = self.nodes[number].value
            if value is not None:
                return value
        return self.nodes[ROOT].value or 0.0

    def asked_at(self, node: int, tokens: Tokens) -> list[int]:
        """Context, reasoning and marker: where the teacher answers after a node."""
        ids, one = self.reasoning(node), self.nodes[node]
        if one.whole or tokens.marker_id in ids:
            return tokens.marked_context(self.context, ids)
        return tokens.answered_now(self.context, ids)


@dataclass(frozen=True)
class Ending:
    """What a search answers after.

    Attributes:
        leaves: nodes, the best first where one is better than another.
        weights: of their item distributions, summing to 1.
    """

    leaves: tuple[int, ...]
    weights: tuple[float, ...]


def weighted(leaves: Sequence[int], worth: Sequence[float]) -> Ending:
    """Leaves with weights in proportion to what they are worth, heaviest first; equal ones where all are worth 0.

    >>> weighted([4, 7, 9], [1.0, 3.0, 0.0])
    Ending(leaves=(7, 4), weights=(0.75, 0.25))
    >>> weighted([4, 7], [0.0, 0.0])
    Ending(leaves=(4, 7), weights=(0.5, 0.5))
    """
    total = sum(worth)
    shares = [one / total for one in worth] if total > 0 else [1 / len(leaves)] * len(leaves)
    order = sorted((place for place in range(len(leaves)) if shares[place] > 0), key=lambda place: -shares[place])
    return Ending(tuple(leaves[place] for place in order), tuple(shares[place] for place in order))
