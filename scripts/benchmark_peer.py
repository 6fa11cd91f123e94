"""Another program, timed in turns with ours: a command that prints seconds per step."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w.])")


class PeerError(Exception):
    """A peer's command could not be run, or said nothing that can be compared."""


@dataclass(frozen=True)
class Peer:
    """What is to be compared with.

    Attributes:
        command: Words of a shell-like command line. The last number on its standard output counts: seconds per step.
        images: Images per step; None is as many as ours.
    """

    command: str
    images: int | None = None

    def images_or(self, ours: int) -> int:
        """Return images per step of the peer, given those of ours."""
        return self.images or ours

    def seconds(self) -> float:
        """Run the command once and return the seconds per step that it printed.

        Raises:
            PeerError: It cannot be started, fails, or prints no number above 0.
        """
        try:
            done = subprocess.run(shlex.split(self.command), capture_output=True, text=True)
        except (OSError, ValueError) as error:
            raise PeerError(f"`--beside {self.command}` cannot be started: {error}. Expected a command line.") from error
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing on its standard error"])[-1]
            raise PeerError(f"`--beside {self.command}` ended with exit status {done.returncode}: {said}")
        return seconds_in(done.stdout, self.command)


def seconds_in(text: str, command: str = "") -> float:
    """Return the last number of a text.

    Raises:
        PeerError: There is none, or it is 0.
    """
    numbers = NUMBER.findall(text)
    value = float(numbers[-1]) if numbers else 0.0
    if value <= 0:
        found = f"{numbers[-1]}" if numbers else "no number"
        raise PeerError(f"`--beside {command}` has to print its seconds per step last, a number above 0; it printed {found}.")
    return value
