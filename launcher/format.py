"""Numbers as people read them."""

from fractions import Fraction


def format_size(count: float) -> str:
    """Bytes as `12.8 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_rate(value: float) -> str:
    """A learning rate as `1e-5`."""
    if value == 0 or value >= 1e-3:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_amount(value: float | Fraction) -> str:
    """`10`, `39.06`, `0.00012`: whole where whole, two places or three digits where not, thousands apart."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{float(value):,.2f}" if value >= 1 else f"{float(value):.3g}"


def format_count(count: float | Fraction, word: str) -> str:
    """`1 step`, `10 steps`."""
    return f"{format_amount(count)} {word}" if count == 1 else f"{format_amount(count)} {word}s"
