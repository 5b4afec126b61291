"""Seconds in words that a person plans by."""


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`: two figures or so, which is all that a forecast can promise."""
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
