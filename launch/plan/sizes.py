"""Numbers of bytes for people."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024


def in_units(size: int) -> str:
    """In the unit that fits, to a tenth: `96 B`, `1.5 KiB`, `40.0 GiB`."""
    if size < _STEP:
        return f"{size} {_UNITS[0]}"
    value, unit = float(size), 0
    # Below what would be rounded to 1,024.0 of a unit.
    while value >= _STEP - 0.05 and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}"


def exactly(size: int) -> str:
    """In the unit that fits, and the bytes: `2.0 GiB (2,147,696,640 bytes)`."""
    return f"{size} bytes" if size < _STEP else f"{in_units(size)} ({size:,} bytes)"
