"""Configuration: TOML -> frozen values. Every mistake is reported, all at once, with its path and what was expected.

reading.py    a file -> `Config`, or `ConfigError`; what only the whole can tell: circles, names taken twice
models.py     `[models.NAME]`, and what the launcher needs of it
batches.py    `[batches]`
tribunals.py  `[tribunal]`
sections.py   the other sections
notation.py   values with a notation of their own: "24:00:00", "64G", "mon-fri"
mistakes.py   what is wrong, in sentences
"""

from .batches import BatchesSection, BatchHours
from .mistakes import ConfigError, path_of
from .models import Fallback, Model, Timeouts
from .notation import Section, parse_memory
from .reading import Config, default_state_dir, load, parse
from .sections import FilesSection, LauncherSection, Limits, Observability, Server
from .tribunals import TribunalSection

__all__ = [
    "BatchHours",
    "BatchesSection",
    "Config",
    "ConfigError",
    "Fallback",
    "FilesSection",
    "LauncherSection",
    "Limits",
    "Model",
    "Observability",
    "Section",
    "Server",
    "Timeouts",
    "TribunalSection",
    "default_state_dir",
    "load",
    "parse",
    "parse_memory",
    "path_of",
]
