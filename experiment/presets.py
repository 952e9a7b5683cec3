"""Presets: settings that belong together, in presets/*.toml."""

import tomllib
from pathlib import Path
from typing import NamedTuple

from experiment.config import Config
from runtime.errors import UserError
from runtime.rules import meant

PRESETS = Path(__file__).parents[1] / "presets"


class Preset(NamedTuple):
    """Settings that belong together, with words on what they are, what they cost and what comes out."""

    about: str
    cost: str
    expected: str
    settings: dict


def preset_names():
    """The names that --preset takes."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name):
    """The Preset of this name. Raises UserError for an unknown one, or one with something unknown in its file."""
    if name not in preset_names():
        raise UserError(f"--preset {name or repr(name)} is unknown{meant(name, preset_names())} (see --list_presets)")
    path = PRESETS / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text())
        if set(content) != set(Preset._fields):
            raise UserError(f"it has {', '.join(content) or 'nothing'}, and should have {', '.join(Preset._fields)}")
        found = Preset(**content)
        Config.from_dict(found.settings)
    except (TypeError, tomllib.TOMLDecodeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    return found
