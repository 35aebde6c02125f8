"""What a server tells of itself: by an action, and in a line of its log."""

from panscope.config import Config

_GIB = 2**30


class TrainerHealth(Config):
    """One trainer."""

    name: str
    epoch: int
    windows_had: int
    lag: int
    """Windows by which it is behind the one that is furthest."""
    silent: float
    """Seconds since it said anything."""


class WindowHealth(Config):
    """One window in memory."""

    window: int
    age: float
    """Seconds since it was read."""


class Health(Config):
    """A server, now."""

    part: str
    windows: int
    """Of the slice."""
    rows_per_second: float
    """Sent to all trainers together, in the last ten seconds."""
    rows_served: int
    bytes_read: int
    """From the store, and the next sent to trainers: what one reading of the disk was worth."""
    bytes_served: int
    resident: tuple[WindowHealth, ...]
    """The oldest first."""
    trainers: tuple[TrainerHealth, ...]
    failure: str | None
    """Why nothing more can be read, if so."""

    def line(self) -> str:
        """In short."""
        ages = [f"{window.age:.0f}" for window in self.resident]
        lags = [f"{trainer.name} epoch {trainer.epoch} lag {trainer.lag}" for trainer in self.trainers]
        return (
            f"slice {self.part}: {self.rows_per_second:,.0f} rows/s, read {self.bytes_read / _GIB:.2f} GiB, served "
            f"{self.bytes_served / _GIB:.2f} GiB, {len(ages)} of {self.windows} windows in memory, seconds old: "
            f"{', '.join(ages) or '-'}; {len(lags)} trainers: {', '.join(lags) or '-'}"
        )
