"""Searches of many users advance together, round by round: what they ask for is written and valued in one call each.

A search is a generator: it yields what it asks for, is sent what came of it, and returns what it answers after. So
each method reads as in its paper, for one user, and none of them can spend more than its budgets: what is asked for
beyond them is not done. Draws belong to the example and the node they start from, so that nobody's tree depends on
that of another.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from anyo_rl.data.completion import parse
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import LineSampler, Sample, Sampler
from anyo_rl.search.how import How
from anyo_rl.search.tree import ROOT, Ending, Node, Tree
from anyo_rl.search.values import State, Value
from anyo_rl.teacher.tokens import Tokens


@dataclass(frozen=True)
class Write:
    """Asks for one step more after some nodes, a draw for each time that a node is named; or for whole reasonings.

    It is answered by the numbers of new children: the same step drawn twice from a node is one child.
    """

    nodes: Sequence[int]
    whole: bool = False


@dataclass(frozen=True)
class Judge:
    """Asks what nodes are worth. It is answered by all of these nodes; values stand in the tree."""

    nodes: Sequence[int]


Search = Generator[Write | Judge, list[int], Ending]
Method = Callable[[Tree, How], Search]


@dataclass(frozen=True)
class Explored:
    """What a search came to: the tree of one user, and what is answered after."""

    tree: Tree
    ending: Ending


@dataclass(frozen=True)
class Explorer:
    """Carries out searches.

    Attributes:
        sampler: of the teacher's weights; a `LineSampler` for searches that go step by step.
        tokens: the teacher's tokenizer and marker.
        how: the search.
        value: what reasonings are worth; `None` where the search does not ask.
    """

    sampler: Sampler
    tokens: Tokens
    how: How
    value: Value | None = None

    def run(self, states: Sequence[State], method: Method) -> list[Explored]:
        """Searches for each user, from the roots of their trees.

        Args:
            states: a row and a tree with its root for each user; examples are told apart by their ids.
            method: of the search.
        """
        searches = [method(state.tree, self.how) for state in states]
        answers: dict[int, list[int] | None] = dict.fromkeys(range(len(states)))
        endings: dict[int, Ending] = {}
        while answers:
            asked: dict[int, Write | Judge] = {}
            for user, answer in answers.items():
                try:
                    asked[user] = next(searches[user]) if answer is None else searches[user].send(answer)
                except StopIteration as done:
                    endings[user] = done.value
            writing = {user: ask for user, ask in asked.items() if isinstance(ask, Write)}
            judging = {user: ask for user, ask in asked.items() if isinstance(ask, Judge)}
            answers = {**self._write(states, writing), **self._judge(states, judging)}
        return [Explored(state.tree, endings[user]) for user, state in enumerate(states)]

    def _judge(self, states: Sequence[State], asked: dict[int, Judge]) -> dict[int, list[int] | None]:
        """Values what was not valued yet, as far as the node budgets go."""
        waiting: list[State] = []
        budget = self.how.settings.node_budget
        for user, ask in asked.items():
            tree = states[user].tree
            assert self.value is not None, "searches that ask have one"
            left = None if budget is None else budget - tree.n_nodes
            for node in dict.fromkeys(ask.nodes):
                if tree.nodes[node].value is None and (left is None or left >= self.value.most_nodes):
                    waiting.append(states[user].at(node))
                    left = None if left is None else left - self.value.most_nodes
        if waiting and self.value is not None:
            valued = self.value(waiting)
            for state, value, n_nodes in zip(waiting, valued.values_B, valued.n_nodes_B, strict=True):
                # Float noise of another batch must not turn round what is equal but for it.
                state.tree.nodes[state.node].value = round(float(value), 6)
                state.tree.n_nodes += int(n_nodes)
        return {user: list(ask.nodes) for user, ask in asked.items()}

    def _write(self, states: Sequence[State], asked: dict[int, Write]) -> dict[int, list[int] | None]:
        """Writes as far as the token budgets go, and grows the trees."""
        draws = [
            draw
            for user, ask in asked.items()
            for draw in (self._whole(user, states[user], ask) if ask.whole else self._lines(user, states[user], ask))
        ]
        self._write_whole(states, [draw for draw in draws if draw.whole])
        self._write_lines([draw for draw in draws if not draw.whole])
        grown: dict[int, list[int] | None] = {user: [] for user in asked}
        for draw in draws:
            assert draw.sample is not None, "it was written"
            child = self._grow(states[draw.user].tree, draw, draw.sample)
            children = grown[draw.user]
            if child is not None and children is not None:
                children.append(child)
        return grown

    def _whole(self, user: int, state: State, ask: Write) -> list["_Draw"]:
        """Whole reasonings that there is budget for."""
        tree, limit = state.tree, self.how.sampling.max_new_tokens
        n = min(len(ask.nodes), (self.how.token_budget - tree.n_tokens) // limit)
        return [_Draw(user, ROOT, tree.context, limit, tree.example_id, str(g), whole=True) for g in range(n)]

    def _lines(self, user: int, state: State, ask: Write) -> list["_Draw"]:
        """Draws of steps that there is budget for, if each is as long as its reasoning has room."""
        tree, found = state.tree, []
        left = self.how.token_budget - tree.n_tokens
        for node in ask.nodes:
            written = tree.reasoning(node)
            room = self.how.sampling.max_new_tokens - len(written)
            if tree.nodes[node].finished or room < 1 or room > left:
                continue
            left -= room
            number = tree.asked.get(node, 0)
            tree.asked[node] = number + 1
            name = f"{tree.nodes[node].name}.{number}".lstrip(".")
            found.append(_Draw(user, node, [*tree.context, *written], room, f"{tree.example_id} {name}", name))
        return found

    def _write_whole(self, states: Sequence[State], draws: Sequence["_Draw"]) -> None:
        """One call of the sampler for all users that have as many reasonings, which is all of them but for budgets."""
        of_user: dict[int, list[_Draw]] = {}
        for draw in draws:
            of_user.setdefault(draw.user, []).append(draw)
        for n in sorted({len(of_one) for of_one in of_user.values()}):
            users = [user for user, of_one in of_user.items() if len(of_one) == n]
            samples_B_G = self.sampler.sample(
                [states[user].tree.context for user in users],
                replace(self.how.own_sampling, n=n),
                keys_B=[states[user].tree.example_id for user in users],
            )
            for user, samples in zip(users, samples_B_G, strict=True):
                for draw, sample in zip(of_user[user], samples, strict=True):
                    draw.sample = sample

    def _write_lines(self, draws: Sequence["_Draw"]) -> None:
        """One call of the sampler for all users; another one for lines that came back blank."""
        if not draws:
            return
        if not isinstance(self.sampler, LineSampler):
            raise UsageError(
                f"search {self.how.mode} writes a reasoning step by step, and {type(self.sampler).__name__} samples "
                f"whole ones: take transformers or an offline vLLM engine, or one of mixture, best_of_n, rank_fusion"
            )
        breaks = set(self.tokens.break_ids)
        left = list(draws)
        while left:
            samples = self.sampler.sample_lines(
                [[*draw.context, *draw.token_ids] for draw in left],
                self.how.own_sampling,
                [draw.limit - len(draw.token_ids) for draw in left],
                [f"{draw.key}{'+' * draw.tries}" for draw in left],
            )
            blank = []
            for draw, sample in zip(left, samples, strict=True):
                draw.add(sample)
                ids = draw.token_ids
                if ids[-1] in breaks and len(ids) < draw.limit and not parse(self.tokens.decode(ids)).steps:
                    blank.append(draw)
            left = blank

    def _grow(self, tree: Tree, draw: "_Draw", sample: Sample) -> int | None:
        """Adds what was drawn; `None` where the node has the very same child already."""
        tree.n_tokens += len(sample.token_ids)
        if not draw.whole:
            for number in tree.children(draw.node):
                if tree.nodes[number].token_ids == sample.token_ids:
                    tree.nodes[number].draws += 1
                    return None
        ended = not sample.token_ids or sample.token_ids[-1] in (self.tokens.marker_id, self.tokens.eos_id)
        text = "\n".join(parse(self.tokens.decode(sample.token_ids)).steps)
        finished = draw.whole or ended or len(sample.token_ids) >= draw.limit
        tree.nodes.append(Node(draw.node, sample, finished, draw.whole, draw.name, text))
        return len(tree.nodes) - 1


@dataclass
class _Draw:
    """One step or one whole reasoning that is written: whose, after which node, and by which draws."""

    user: int
    node: int
    context: list[int]
    limit: int
    key: str
    name: str
    whole: bool = False
    sample: Sample | None = None
    tries: int = 0

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Written so far."""
        return self.sample.token_ids if self.sample is not None else ()

    def add(self, sample: Sample) -> None:
        """Takes what was written on top of a blank line."""
        before, self.tries = self.sample, self.tries + 1
        if before is None:
            self.sample = sample
            return
        both = before.log_probs is not None and sample.log_probs is not None
        log_probs = (*(before.log_probs or ()), *(sample.log_probs or ())) if both else None
        self.sample = Sample((*before.token_ids, *sample.token_ids), log_probs, sample.finish_reason)
