"""Two machines out of one: they reach each other, leave nothing behind, and say what they lack."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture
def nodes_module(monkeypatch: pytest.MonkeyPatch, repo_root):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import nodes

    return nodes


def test_nodes_have_a_network_of_their_own_that_ends_with_them(nodes_module):
    try:
        with nodes_module.two_nodes() as nodes:
            for node in nodes:
                assert os.readlink(f"/proc/{node.pid}/ns/net") != os.readlink("/proc/self/ns/net")
                show = subprocess.run(node.command(["ip", "-brief", "addr"]), capture_output=True, text=True).stdout
                assert f"node{node.rank}@" in show
                assert f"{node.address}/24" in show
                assert "eth0" not in show
            flags = "--machine_rank 1 --main_process_ip 10.77.0.1 --main_process_port 29500"
            assert " ".join(nodes[1].launch_flags) == f"--num_machines 2 --num_processes 2 {flags}"
    except nodes_module.NoNodesError as error:
        pytest.skip(str(error))
    assert not any(os.path.exists(f"/proc/{node.pid}") for node in nodes)
    left = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True).stdout
    assert "node0" not in left


@pytest.mark.parametrize(("program", "package"), [("ip", "iproute2"), ("unshare", "util-linux")])
def test_what_is_missing_is_named_with_its_package(nodes_module, monkeypatch, program, package):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else name)
    with (
        pytest.raises(nodes_module.NoNodesError, match=f"`{program}`: `apt install {package}`"),
        nodes_module.two_nodes(),
    ):
        pass


def test_a_missing_right_is_an_error_that_says_so(nodes_module, monkeypatch, tmp_path):
    refused = tmp_path / "unshare"
    refused.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    refused.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(nodes_module.NoNodesError, match=r"right to make.*not permitted"), nodes_module.two_nodes():
        pass
