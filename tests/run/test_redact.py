import pytest

from anyo_rl.run.redact import is_secret, redact, redact_command, redact_forms


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hub_token", "HF_TOKEN", "--judge-token", "key", "api_key", "OPENAI_API_KEY", "apikey"),
        *("password", "db_password_2", "client_secret", "secrets", "Authorization", "passwd", "bearer", "pwd"),
        *("private_key_pem", "privateKeyPem", "apiKey", "API_KEYS", "access_key_id", "X-Api-Key", "credentials"),
        *("passphrase", "auth", "session_cookie", "accessToken", "auth_tokens", "pass"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_new_tokens", "max_reasoning_tokens", "history_tokens", "marker_token", "eos_token", "pad_token"),
        *("tokenizer", "keywords", "monkey", "num_items_in_batch", "learning_rate", "key_variable", "author"),
        *("token_type_ids", "max_tokens", "bypass", "include_num_input_tokens_seen", "", "->"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:SESAME@host:8000/v1", "http://<redacted>@host:8000/v1"),
        ("see http://SESAME@host, or", "see http://<redacted>@host, or"),
        ("postgres://u:SES/AME?#@host/db", "postgres://<redacted>@host/db"),
        ("http://u:SES@AME@host/a@b", "http://<redacted>@host/a@b"),
        ("http://h/v1?api-version=2&api_key=SESAME#x", "http://h/v1?api-version=2&api_key=<redacted>#x"),
        ("http://h/?key=SESAME&n=1", "http://h/?key=<redacted>&n=1"),
        ("https://h/b?sv=1&sig=SESAME", "https://h/b?sv=1&sig=<redacted>"),
        ("https://h/b?X-Amz-Signature=SESAME&x=1", "https://h/b?X-Amz-Signature=<redacted>&x=1"),
        ("Authorization: Bearer SESAME", "Authorization: <redacted>"),
        ('authorization: Digest username="u", response="SESAME"', "authorization: <redacted>"),
        ("X-Api-Key: SESAME", "X-Api-Key: <redacted>"),
        ("Cookie: a=SESAME; b=SESAME", "Cookie: <redacted>"),
        ('{"url": "u", "api_key": "SESAME"}', '{"url": "u", "api_key": "<redacted>"}'),
        ('{"headers": {"X": "Bearer SESAME123"}}', '{"headers": {"X": "Bearer <redacted>"}}'),
        ('{"url": "http://u:SESAME@h"}', '{"url": "http://<redacted>@h"}'),
        ('{"url": "u", "api_key": "SES AME"', '{"url": "u", "api_key": "<redacted>"'),  # no JSON
        ("{'token': 'SESAME', 'n': 2}", "{'token': '<redacted>', 'n': 2}"),
        ("{api_key: SESAME, n: 2}", "{api_key: <redacted>, n: 2}"),
        ("run HF_TOKEN=SESAME x.py --api_key SESAME --n 2", "run HF_TOKEN=<redacted> x.py --api_key <redacted> --n 2"),
        ("-----BEGIN RSA PRIVATE KEY-----\nSESAME\n-----END RSA PRIVATE KEY-----\n", "<redacted>\n"),
        ("-----BEGIN PRIVATE KEY-----\nSESAME", "<redacted>"),
        ("it is sk-proj-0123456789abcdef, keep it", "it is <redacted>, keep it"),
        ("hf_abcdefghijklmnopqrst", "<redacted>"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2lnbmF0dXJl", "<redacted>"),
    ],
)
def test_secrets_that_their_form_tells(text, expected):
    assert redact_forms(text) == expected
    assert redact_forms(expected) == expected
    assert redact({"any_setting": [text]}) == {"any_setting": [expected]}
    assert redact_command(["run.py", "--any", text, f"--any={text}"]) == [
        "run.py",
        "--any",
        expected,
        f"--any={expected}",
    ]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "http://localhost:8000/v1",
            "http://[::1]:8000/v1",
            "https://host/@scope/pkg",
            "Qwen/Qwen3-8B",
            "runs/a=1/b.csv",
        ),
        *("logs/token=3/log.csv", "runs/sk-learn-with-a-long-name-2", "reward/mine.py:my_reward", "->", "ndcg@20"),
        *('{"a":1,  "b": [2]}', "[1,2]", "{{ history }}", "{history", "Next: the token: a piece of text", "a@b.org"),
        *("Basic materials and bearer shares", "SCORE: 10", "cuda:0", "max_tokens=300", "key: value", "$HOME/logs?x"),
        *("https://huggingface.co/datasets/a/b?split=train&max_tokens=3", "marker_token: ->", "OPENAI_API_KEY"),
        "hub_token: null",
    ],
)
def test_other_texts_stay_to_the_letter(text):
    assert redact_forms(text) == text
    assert redact({"any_setting": text}) == {"any_setting": text}
    assert redact_command(["--any", text]) == ["--any", text]


def test_headers_as_pairs_and_as_names_with_values():
    given = {
        "headers": [
            ["X-Api-Key", "SESAME"],
            {"name": "Authorization", "value": "SESAME"},
            {"name": "x", "value": "y"},
        ],
        "reward_funcs": ["ndcg", "format"],
    }
    assert redact(given) == {
        "headers": [
            ["X-Api-Key", "<redacted>"],
            {"name": "Authorization", "value": "<redacted>"},
            {"name": "x", "value": "y"},
        ],
        "reward_funcs": ["ndcg", "format"],
    }
