"""Which file a suite's name on the command line means: what `train` and `plan` share."""

from pathlib import Path

from panscope import builtin
from panscope.types import UserError


def suite_file(name: str) -> Path:
    """A path as it is, or the file of a built-in suite; raises UserError naming the built-in ones."""
    built_in = builtin.SUITES / f"{name}.toml"
    if Path(name).is_file() or name.endswith(".toml"):
        return Path(name)
    if not built_in.is_file():
        known = ", ".join(sorted(path.stem for path in builtin.SUITES.glob("*.toml")))
        hint = "; to go on with a run folder, use panscope train --resume" if Path(name).is_dir() else ""
        raise UserError(
            f"suite {name!r} is neither a file nor a built-in suite: give a .toml file or one of {known}{hint}"
        )
    return built_in
