"""A budget of tokens and money that is not overrun by what is in flight."""

import asyncio
import json
from collections.abc import Iterable

from anyo_rl.llm.http import Server
from anyo_rl.llm.journal import Answer


class Budget:
    """Lets a request go where even its dearest answer would leave the budget whole.

    That is a token for each byte of the prompt and the limit on the answer's tokens. Where what is in flight stands in
    the way, the request waits until it is known what that really took. Three things a budget cannot see: what a server
    adds to a prompt on its own, what it takes for answers that never arrived whole, and what other processes spend in
    the same folder after this one has started.

    Args:
        server: has the limits and prices.
        answers: what was paid for already.
    """

    def __init__(self, server: Server, answers: Iterable[Answer]) -> None:
        self.server = server
        self.tokens, self.money = 0, 0.0
        self._held: dict[int, tuple[int, float]] = {}
        self._changed = asyncio.Event()
        for answer in answers:
            self.pay(answer)

    def pay(self, answer: Answer) -> None:
        """Counts an answer."""
        self.tokens += (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
        self.money += answer.money or 0.0

    async def hold(self, request: int, prompt: object) -> bool:
        """Sets aside what a request may take at most, once there is room; False where there never will be.

        Args:
            request: its number, for `release`.
            prompt: text, messages or token ids.
        """
        if not self.server.has_budget:
            return True
        # No token is shorter than a byte, and the JSON of messages is longer than what templates put around them.
        n_prompt = len(json.dumps(prompt, ensure_ascii=False).encode())
        n_completion = self.server.most_completion_tokens or 0
        most = n_prompt + n_completion, self.server.money(n_prompt, n_completion) or 0.0
        while not self._has_room(*most):
            if not self._held:
                return False
            self._changed.clear()
            await self._changed.wait()
        self._held[request] = most
        return True

    def release(self, request: int) -> None:
        """Gives back what was set aside for a request, and lets those that wait look again."""
        self._held.pop(request, None)
        self._changed.set()

    def _has_room(self, tokens: int, money: float) -> bool:
        tokens += self.tokens + sum(held for held, _ in self._held.values())
        money += self.money + sum(held for _, held in self._held.values())
        most_tokens, most_money = self.server.max_tokens_in_all, self.server.max_money
        return (most_tokens is None or tokens <= most_tokens) and (most_money is None or money <= most_money)
