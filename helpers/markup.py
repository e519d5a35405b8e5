"""Text of others as data: what a card, a sidecar or a record says is read as it stands, and never as markup."""

import re

SPECIAL = re.compile(r"([\\`*_{}\[\]<>$|&~])")
OPENING = re.compile(r"^([#%+\-=:()!^@.]|\d+(?=[.)]))")  # what begins a block where a line begins with it


def one_line(text: object) -> str:
    """A text without line breaks and control characters: a line of its own could begin another block."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(text)).split())


def literal(text: object) -> str:
    """Any text as MyST Markdown that shows just this text, on one line, anywhere in a page but in code."""
    escaped = SPECIAL.sub(r"\\\1", one_line(text))
    opening = OPENING.match(escaped)
    if opening is None:
        return escaped
    first = opening[1]
    return f"{first}\\{escaped[len(first) :]}" if first.isdigit() else f"\\{escaped}"


def code(text: object, in_table: bool = False) -> str:
    """Any text as a span of code, whatever backticks it holds. ``in_table``: where a bar would end the cell."""
    plain = one_line(text)
    plain = plain.replace("|", "\\|") if in_table else plain
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    inner = f" {plain} " if plain.startswith("`") or plain.endswith("`") else plain
    return f"{fence}{inner}{fence}" if plain else ""
