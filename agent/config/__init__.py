"""The configuration: every key known, every error with its line, and the law of what may run.

`load` reads a `vedette.yml` as it lies and verifies nobody: for commands that only look. What the daemon runs comes
through `accept` alone: signed, by principals who may, and newer than what ran before.
"""

from agent.config.load import Locator, load, load_bootstrap
from agent.config.model import Bootstrap, Configuration, ExceptionConfig, ModelConfig, SinkConfig, StreamConfig
from agent.config.revision import Accepted, Files, accept, root_of

__all__ = [
    "Accepted",
    "Bootstrap",
    "Configuration",
    "ExceptionConfig",
    "Files",
    "Locator",
    "ModelConfig",
    "SinkConfig",
    "StreamConfig",
    "accept",
    "load",
    "load_bootstrap",
    "root_of",
]
