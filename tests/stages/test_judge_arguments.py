import pytest

from anyo_rl.llm.http import ServerError
from anyo_rl.run.folder import resolve
from anyo_rl.stages.judge_arguments import JudgeArguments
from anyo_rl.stages.prm import PrmArguments
from anyo_rl.values.judge import PROMPT

KEY = "sk-Sentinel0123456789"
SERVER = {"url": "http://localhost:1/v1", "model": "m"}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_judge_from_a_flag_and_its_defaults(tmp_path):
    judge = JudgeArguments('{"url": "http://localhost:1/v1", "model": "m"}').judge_values(tmp_path)
    assert (judge.server.url, judge.server.model) == ("http://localhost:1/v1", "m")
    assert judge.server.parameters == {"temperature": 0.0, "max_tokens": 300}
    assert judge.instructions == PROMPT.read_text().strip()
    assert judge.journal == tmp_path


def test_settings_and_a_prompt_of_ones_own(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Judge well.\n")
    asked = {**SERVER, "key_variable": None, "parameters": {"top_p": 0.5}, "prompt_file": str(own), "concurrency": 3}
    judge = JudgeArguments(asked).judge_values()
    assert (judge.instructions, judge.server.parameters, judge.server.concurrency) == (
        "Judge well.",
        {"top_p": 0.5},
        3,
    )
    assert asked["prompt_file"] == str(own)  # as it was given


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (None, "needs a judge: expected a mapping"),
        ("{", "needs a judge"),
        ("[1]", "needs a judge"),
        ({**SERVER, "modle": "m"}, r"judge has modle: expected prompt_file or one of completion_price"),
        ({"url": "http://localhost:1/v1"}, "no model"),
        ({**SERVER, "parameters": {"api_key": "sk-x"}}, "no secrets"),
        ({**SERVER, "url": "http://[::1"}, "is none"),
        ({**SERVER, "parameters": {"max_tokens": "x"}}, "max_tokens in parameters is 'x'"),
        ({**SERVER, "concurrency": None}, r"judge\.concurrency is null; expected a whole number"),
        ({**SERVER, "skip_statuses": 200}, r"skip_statuses is \(200,\)"),
        ({**SERVER, "max_tokens_in_all": 9, "key_variable": ""}, "a judge with a budget and no journal"),
    ],
)
def test_what_is_no_judge_is_refused(judge, expected):
    with pytest.raises(ValueError, match=expected):
        JudgeArguments(judge).judge_values()


def test_no_key_is_said_at_once(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ServerError, match="found no OPENAI_API_KEY"):
        JudgeArguments(SERVER).judge_values()


def test_answers_belong_to_what_is_asked_and_not_to_how():
    one, other = ({**SERVER, **more} for more in ({"concurrency": 1}, {"concurrency": 2, "max_tokens_in_all": 900}))
    assert JudgeArguments(one).asked() == JudgeArguments(other).asked()
    assert JudgeArguments(one).asked() != JudgeArguments({**one, "model": "n"}).asked()
    assert JudgeArguments().asked() == {}
    written = resolve(PrmArguments(step_values="judge", judge=one), **JudgeArguments(one).asked())
    assert KEY not in str(written)
    assert written["Judge"].settings["model"] == "m"


def test_judge_and_its_settings_go_together():
    for settings in ({"step_values": "judge"}, {"judge": SERVER}):
        with pytest.raises(ValueError, match="step_values judge and the settings of a judge go together"):
            PrmArguments(**settings)
