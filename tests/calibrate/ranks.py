"""`ropecli` in several ranks, cheaper than torchrun: one process imports everything, then forks.

Reads a JSON object from standard input, name → {"size", "arguments", "before"}, and prints one, name → {"statuses",
"out", "err"}. Each rank has the environment that torchrun gives, and runs the code `before` first. Nobody ends a rank
when another one has ended, so that a rank which waits for ever would be seen.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama

from calibrate import evaluation, passkey, run
from ropecli import cli

__all__ = ["evaluation", "passkey", "run", "transformers"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def begin(rank: int, port: int, scene: Mapping[str, Any], folder: Path) -> None:
    """Be one rank; does not return."""
    size = scene["size"]
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    exec(scene.get("before", ""), {"rank": rank})  # noqa: S102 - what the test wants broken
    status, cli.PATIENCE = 1, 0.0  # here nobody ends the first rank
    try:
        cli.main(scene["arguments"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)  # the folder is the parent's to remove


def play(scene: Mapping[str, Any]) -> dict[str, Any]:
    """What the ranks of one scene said, all of them, and the exit status of each."""
    port, children = free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(scene["size"]):
            child = os.fork()
            if child == 0:
                begin(rank, port, scene, Path(folder))
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = {name: (Path(folder) / name).read_text().splitlines() for name in ("out", "err")}
    return {"statuses": statuses, **said}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: play(scene) for name, scene in json.load(sys.stdin).items()}))
