"""Settings of a judge that scores steps: its server, its prompt, and where its answers are kept."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyo_rl.run.settings import all_fitted, fitted
from anyo_rl.stages.server_arguments import ServerArguments
from anyo_rl.values.judge import PROMPT, JudgeValues


@dataclass
class JudgeArguments:
    """The judge, whose settings are a mapping: their names are those of other arguments too."""

    judge: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "For step_values judge: url, model and the other settings of a server that make_rationales has, "
            "and prompt_file, a text that replaces anyo_rl/values/judge.txt; a mapping in YAML, JSON as a flag.",
            "free": True,
        },
    )

    def judge_values(self, journal: Path | None = None) -> JudgeValues:
        """The judge; temperature 0 and at most 300 tokens an answer where `parameters` is unset.

        Args:
            journal: folder in which its answers are kept.

        Raises:
            ValueError: there is none, or a setting is unknown, missing or out of its range.
            OSError: the prompt file cannot be read.
            ServerError: the key is not in the environment.
        """
        settings = self.judge
        if isinstance(settings, str):
            try:
                settings = json.loads(settings)
            except ValueError:
                settings = ""
        if not settings or not isinstance(settings, dict):  # not shown: it may hold a secret
            raise ValueError(
                "step_values judge needs a judge: expected a mapping in YAML, or JSON as a flag, "
                '{"url": "http://localhost:8000/v1", "model": "Qwen/Qwen3-8B"}'
            )
        settings = dict(settings)
        prompt = Path(fitted("judge.prompt_file", settings.pop("prompt_file", None), str | None) or PROMPT)
        names = {item.name for item in dataclasses.fields(ServerArguments)}
        unknown = sorted(settings.keys() - names)
        if unknown:
            raise ValueError(
                f"judge has {', '.join(unknown)}: expected prompt_file or one of {', '.join(sorted(names))}"
            )
        settings = {**all_fitted(ServerArguments, settings, "judge")}
        server = ServerArguments(**{"parameters": {"temperature": 0.0, "max_tokens": 300}, **settings}).server()
        server.key()  # a key that is not there is said before anything is sampled
        return JudgeValues(server, prompt.read_text(encoding="utf-8").strip(), journal)

    def asked(self) -> dict[str, dict[str, Any]]:
        """What a run's answers belong to, as a section of its arguments; none where there is no judge.

        Raises:
            ValueError: as `judge_values`, and so the others.
        """
        if self.judge is None:
            return {}
        judge = self.judge_values(Path())
        return {"Judge": {**judge.server.body([], 0), "instructions": judge.instructions}}
