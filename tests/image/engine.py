"""Containers of the image under test: locked down as far as an engine can lock them, and thrown away."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENT = 240.0  # seconds for the service to be ready
LOCKED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),  # noqa: S108
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)


@dataclass(frozen=True)
class Engine:
    """A command such as docker, and the image that it runs."""

    command: tuple[str, ...]
    image: str

    @classmethod
    def named(cls, command: str, image: str) -> Engine:
        return cls(tuple(shlex.split(command)), image)

    def inspect(self) -> dict[str, Any]:
        """What the engine knows of the image."""
        (known,) = json.loads(self.ask("image", "inspect", self.image))
        content: dict[str, Any] = known
        return content

    def ask(self, *arguments: str) -> str:
        """What a command of the engine's prints; it must succeed."""
        ended = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def run(self, name: str, network: str, settings: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The command that runs the service in front, with these variables of its own environment."""
        passed = [text for variable in settings for text in ("--env", variable)]
        return (
            *(*self.command, "run", "--rm", "--name", name, "--network", network, *LOCKED),
            *(*passed, self.image),
        )

    def remove(self, name: str) -> None:
        """The container, if it is still there."""
        subprocess.run([*self.command, "rm", "--force", name], capture_output=True, check=False)


@dataclass(frozen=True)
class Container:
    """A running container."""

    engine: Engine
    name: str

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside."""
        asked = [*self.engine.command, "exec", self.name, *command]
        return subprocess.run(asked, capture_output=True, text=True, check=False)

    def says(self, *command: str) -> str:
        """What a command inside prints; it must succeed."""
        ended = self.execute(*command)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@contextmanager
def offline(engine: Engine) -> Iterator[Container]:
    """The service without a network, once its own check finds it ready."""
    container = Container(engine, fresh_name())
    process = subprocess.Popen(engine.run(container.name, "none"), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENT
        while container.execute("clip4str-service", "health").returncode != 0:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < deadline, "it did not become ready"
            time.sleep(0.5)
        yield container
    finally:
        engine.remove(container.name)
        process.wait()


def fresh_name() -> str:
    """Of a container that does not exist."""
    return f"clip4str-test-{uuid.uuid4().hex[:12]}"
