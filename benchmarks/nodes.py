"""Two machines out of one: two network namespaces, joined by a cable, for launches over several nodes.

Needs Linux, root, util-linux (`unshare`, `nsenter`) and iproute2 (`ip`).
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PORT = 29500  # nothing else listens in a namespace of one's own
DEBIAN_PACKAGES = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}


class NoNodesError(RuntimeError):
    """This machine cannot be split into two; says why."""


@dataclass(frozen=True)
class Node:
    """One of the two machines, with the disk of the real one.

    Attributes:
        rank: 0 or 1.
        pid: a process that lives in its network namespace.
    """

    rank: int
    pid: int

    @property
    def address(self) -> str:
        return f"10.77.0.{self.rank + 1}"

    @property
    def env(self) -> dict[str, str]:
        """What processes there have to be told: by itself gloo listens where the host name leads, which is nowhere."""
        return {"GLOO_SOCKET_IFNAME": f"node{self.rank}"}

    @property
    def launch_flags(self) -> tuple[str, ...]:
        """Flags of `accelerate launch`, for one process on each of the two."""
        ranks = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(self.rank))
        return (*ranks, "--main_process_ip", Node(0, 0).address, "--main_process_port", str(PORT))

    def command(self, command: Sequence[str]) -> list[str]:
        """The command, to be run on this machine."""
        return ["nsenter", "--target", str(self.pid), "--net", *command]


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two machines with a network between them and no way out.

    Their namespaces have no names, and live as long as a process inside: a `cat` that ends when its input closes, on
    the way out of here or when this process is killed. So they are never left behind.

    Raises:
        NoNodesError: a program or a right is missing.
    """
    for program, package in DEBIAN_PACKAGES.items():
        if shutil.which(program) is None:
            raise NoNodesError(f"two nodes need the program `{program}`: `apt install {package}` on Debian and Ubuntu")
    with contextlib.ExitStack() as stack:
        nodes = Node(0, stack.enter_context(_namespace())), Node(1, stack.enter_context(_namespace()))
        _ip(nodes[0], f"link add node0 type veth peer name node1 netns {nodes[1].pid}")
        for node in nodes:
            _ip(node, f"addr add {node.address}/24 dev node{node.rank}")
            _ip(node, f"link set node{node.rank} up")
            _ip(node, "link set lo up")
        yield nodes


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    command = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        if not holder.stdout.readline():
            raise NoNodesError(f"two nodes need the right to make network namespaces: {holder.stderr.read().strip()}")
        yield holder.pid


def _ip(node: Node, arguments: str) -> None:
    done = subprocess.run(node.command(["ip", *arguments.split()]), capture_output=True, text=True)
    if done.returncode:
        raise NoNodesError(f"two nodes need the right to join networks: ip {arguments}: {done.stderr.strip()}")
