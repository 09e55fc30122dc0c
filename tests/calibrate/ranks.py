"""`ropecli` in several ranks, quicker than torchrun: one process imports everything, then forks.

    python ranks.py SIZE [--before CODE] -- ARGUMENTS OF ROPECLI

Each rank has the environment that torchrun gives. CODE runs in every rank first. Nobody ends a rank when another one
has ended, so that a rank which would wait for ever is seen. The exit statuses, by rank, are the last line of standard
output.
"""

import os
import socket
import sys
from collections.abc import Sequence

import torch
import transformers.models.llama.modeling_llama

from calibrate import evaluation, passkey, run
from ropecli.cli import main

__all__ = ["evaluation", "passkey", "run", "transformers"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def begin(rank: int, size: int, port: int, before: str, arguments: Sequence[str]) -> None:
    """Be one rank; does not return."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    exec(before, {"rank": rank})  # noqa: S102 - what the test wants broken
    main(arguments)


def launch(size: int, before: str, arguments: Sequence[str]) -> list[int]:
    """The exit status of every rank."""
    port, children = free_port(), []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            begin(rank, size, port, before, arguments)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    words, end = sys.argv[1:], sys.argv.index("--") - 1
    print(*launch(int(words[0]), words[2] if end > 1 else "", words[end + 1 :]))
