"""Status of a server, returned by the health action and written to its log."""

from panscope.config import Config

_GIB = 2**30


class TrainerHealth(Config):
    """Status of one trainer."""

    name: str
    epoch: int
    windows_had: int
    lag: int
    """Number of windows behind the most advanced trainer."""
    silent: float
    """Seconds since its last activity."""


class WindowHealth(Config):
    """Status of one window in memory."""

    window: int
    age: float
    """Seconds since it was read."""


class Health(Config):
    """Current status of a server."""

    part: str
    windows: int
    """Number of windows of the slice."""
    rows_per_second: float
    """Rows sent to all trainers together, averaged over the last ten seconds."""
    rows_served: int
    bytes_read: int
    """Bytes read from the store; `bytes_served` / `bytes_read` measures how well trainers share the reads."""
    bytes_served: int
    """Bytes sent to trainers."""
    resident: tuple[WindowHealth, ...]
    """The oldest first."""
    trainers: tuple[TrainerHealth, ...]
    failure: str | None
    """Why reading has failed; None while it works."""

    def line(self) -> str:
        """A one-line summary for the log."""
        ages = [f"{window.age:.0f}" for window in self.resident]
        lags = [f"{trainer.name} epoch {trainer.epoch} lag {trainer.lag}" for trainer in self.trainers]
        return (
            f"slice {self.part}: {self.rows_per_second:,.0f} rows/s, read {self.bytes_read / _GIB:.2f} GiB, served "
            f"{self.bytes_served / _GIB:.2f} GiB, {len(ages)} of {self.windows} windows in memory, seconds old: "
            f"{', '.join(ages) or '-'}; {len(lags)} trainers: {', '.join(lags) or '-'}"
        )
