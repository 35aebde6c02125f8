"""Large numbers as people read them: one line, three digits, a unit."""

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COUNTS = ("", "K", "M", "B", "T")


def in_bytes(number: float) -> str:
    """104.3 TiB."""
    power = 0
    while abs(number) >= 1024 and power < len(_BYTES) - 1:
        number, power = number / 1024, power + 1
    return f"{_three(number)} {_BYTES[power]}"


def in_counts(number: float) -> str:
    """2.61B: thousands, millions, billions, trillions."""
    power = 0
    while abs(number) >= 999.5 and power < len(_COUNTS) - 1:
        number, power = number / 1000, power + 1
    return f"{_three(number)}{_COUNTS[power]}"


def counted(number: int, what: str) -> str:
    """1 coder, 1,200 coders."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def in_hours(number: float) -> str:
    """12,345 or 0.0123."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def ranges(numbers: list[int]) -> str:
    """0-3, 7, 9-10 of ascending whole numbers."""
    pieces: list[list[int]] = []
    for number in numbers:
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return ", ".join(f"{piece[0]}-{piece[-1]}" if len(piece) > 1 else str(piece[0]) for piece in pieces)


def _three(number: float) -> str:
    """Three significant digits, all digits before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
