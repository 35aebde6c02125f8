"""`panscope formats`: which other tools' coders are read and written."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Formats:
    """List the formats that `panscope import` reads and `panscope export` writes.

    For example
      panscope formats
    """
