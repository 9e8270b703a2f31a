"""The configuration file: read once at start, every key known, every error with its line.

`load` is the one door. It reads `vedette.yml` as it lies; nothing here verifies who wrote it.
"""

from agent.config.load import Locator, load
from agent.config.model import Configuration, SinkConfig, StreamConfig

__all__ = ["Configuration", "Locator", "SinkConfig", "StreamConfig", "load"]
