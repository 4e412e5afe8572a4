import dataclasses

import pytest

from anyo_rl.llm.server import Server
from anyo_rl.reasoning.rationales.filters import FilterArguments
from anyo_rl.stages.begin import parse
from anyo_rl.stages.server_arguments import ServerArguments


def test_every_argument_of_rationales_has_a_help_text():
    for kind in (FilterArguments, ServerArguments):
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help", "").endswith("."), f"{kind.__name__}.{field.name}"


def test_a_servers_arguments_are_the_servers_own(tmp_path):
    # The words and defaults are those of the server: a setting that it gets has to be an argument too.
    assert {item.name for item in dataclasses.fields(ServerArguments)} == {
        item.name for item in dataclasses.fields(Server)
    }
    flags = ["--model", "m", "--parameters", '{"max_tokens": 7}', "--key_variable", ""]
    flags += ["--skip_statuses", "400", "422"]
    arguments, _ = parse((ServerArguments,), args=flags)
    url = "http://localhost:8000/v1"
    assert arguments.server() == Server(url, "m", {"max_tokens": 7}, key_variable=None, skip_statuses=(400, 422))
    config = tmp_path / "c.yaml"
    config.write_text("model: m\nparameters: {stop: [x]}\nkey_variable: null\n")
    arguments, _ = parse((ServerArguments,), args=["--config", str(config)])
    assert arguments.server() == Server(url, "m", {"stop": ["x"]}, key_variable=None)
    assert ServerArguments(model="m").server() == Server(url, "m")
    arguments, _ = parse((ServerArguments,), args=["--model", "m", "--key_variable", "null"])
    assert arguments.server().key_variable is None
    with pytest.raises(SystemExit, match="parameters is no mapping") as refused:
        parse((ServerArguments,), args=["--parameters", '{"api_key": "sentinel"'])
    assert "sentinel" not in str(refused.value)
    with pytest.raises(ValueError, match="no model"):
        ServerArguments().server()
    with pytest.raises(ValueError, match="parameters hold api_key"):
        ServerArguments(model="m", parameters={"api_key": "sentinel"}).server()
