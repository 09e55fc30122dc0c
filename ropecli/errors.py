"""What can go wrong for a user, and with which exit status.

RopeError                 one line for a person, and a hint
├─ CheckFailed        1   a check that the user asked for did not pass
├─ BadUsage           2   the command line asks for something impossible
│  └─ OutputExists    2   writing would replace something
├─ BadCheckpoint      3   a file is unreadable, malformed or inconsistent
│  └─ BadParameter    3   a number in a spec is out of its range
├─ BadData            3   text that cannot be used
├─ BadCalibration     3   a calibration file that cannot be used
├─ NoResource         4   out of memory, disk space, or a missing optional package
└─ Inconclusive       5   a calibration could not do what was asked
"""

from typing import Any, ClassVar


def printable(text: str) -> str:
    """Text that may quote a file, with its control characters made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class RopeError(Exception):
    """A failure that a user can act on.

    `problem` says what is wrong, what was found and what was expected; `where` names the file and the key or tensor;
    `hint` says what to do next, and is the `advice` of its class where none is given; `findings` are lint findings
    about the same file, where there are any. Only `ropecli.cli` catches it.
    """

    exit_status: ClassVar[int] = 3
    code: ClassVar[str] = "error"
    advice: ClassVar[str] = ""

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.hint = hint or self.advice
        self.findings: tuple[Any, ...] = ()

    @property
    def message(self) -> str:
        """Place and problem on one line; control characters from files are made visible."""
        return printable(f"{self.where}: {self.problem}" if self.where else self.problem)

    def at(self, where: str) -> "RopeError":
        """The same error with its place put in front; for callers that know the file."""
        self.where = f"{where}: {self.where}" if self.where else where
        return self


class CheckFailed(RopeError):
    """A check that the user asked for did not pass."""

    exit_status = 1
    code = "check-failed"
    advice = "please report it with the command and the config"


class BadUsage(RopeError):
    """The command line asks for something impossible."""

    exit_status = 2
    code = "usage"
    advice = "ropecli VERB --help lists what it takes"


class OutputExists(BadUsage):
    """Writing would replace something that is already there."""

    code = "output-exists"


class BadCheckpoint(RopeError):
    """A checkpoint is unreadable, malformed or inconsistent."""

    code = "checkpoint"
    advice = "correct the file, or download it again"


class BadParameter(BadCheckpoint):
    """A number of a rotary embedding is missing or out of its range."""

    code = "parameter"
    advice = "correct that value"


class BadData(RopeError):
    """Text that cannot be read or is too short."""

    code = "data"
    advice = "correct that text, or leave it out"


class BadCalibration(RopeError):
    """A calibration file that cannot be read or does not fit the checkpoint."""

    code = "calibration-file"
    advice = "write one with: ropecli calibrate MODEL --data F"


class NoResource(RopeError):
    """Memory, disk space or an optional package is missing."""

    exit_status = 4
    code = "resource"
    advice = "make room, or choose another place"


class Inconclusive(RopeError):
    """A calibration could not do what was asked: the parameters are inert, or no loss is finite."""

    exit_status = 5
    code = "inconclusive"
    advice = "please report it with the command and the config"
