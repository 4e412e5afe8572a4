import pytest

from anyo_rl.run.redact import is_secret, redact, redact_command


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hub_token", "HF_TOKEN", "--judge-token", "key", "api_key", "OPENAI_API_KEY", "apikey"),
        *("password", "db_password_2", "client_secret", "secrets", "Authorization"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_new_tokens", "max_reasoning_tokens", "history_tokens", "marker_token", "eos_token", "pad_token"),
        *("tokenizer", "keywords", "monkey", "num_items_in_batch", "learning_rate"),
    ],
)
def test_names_of_other_settings(name):
    assert not is_secret(name)


def test_secrets_are_taken_out_however_deep_they_lie():
    given = {
        "reward_kwargs": {"judge": {"api_key": "S", "url": "u", "headers": [{"Authorization": "S"}]}},
        "hub_token": None,
        "marker_token": "->",
        "max_new_tokens": 3,
    }
    assert redact(given) == {
        "reward_kwargs": {
            "judge": {"api_key": "<redacted>", "url": "u", "headers": [{"Authorization": "<redacted>"}]}
        },
        "hub_token": None,  # it is not set, and that is no secret
        "marker_token": "->",
        "max_new_tokens": 3,
    }
    assert given["reward_kwargs"]["judge"]["api_key"] == "S"


def test_commands_are_written_without_their_secrets():
    command = ["env", "HF_TOKEN=S", "run.py", "--api_key", "S", "--judge-token=S", "--lr", "1", "--marker_token", "->"]
    command += ["--reward_kwargs", '{"judge": {"api_key": "S", "n": 2}}', '--kw={"password": "S"}', "--broken", "{S"]
    assert redact_command(command) == [
        *("env", "HF_TOKEN=<redacted>", "run.py", "--api_key", "<redacted>", "--judge-token=<redacted>"),
        *("--lr", "1", "--marker_token", "->"),
        *("--reward_kwargs", '{"judge": {"api_key": "<redacted>", "n": 2}}', '--kw={"password": "<redacted>"}'),
        *("--broken", "{S"),
    ]
    assert redact_command(["--api_key", "--lr", "1"]) == ["--api_key", "--lr", "1"]  # it had no value
