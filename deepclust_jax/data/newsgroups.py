"""Headers, footers and quotes of 20 Newsgroups removed, by the same rules as scikit-learn.

With them a model clusters addresses and signatures. Published figures differ by whether they were
removed; here they always are, and the few messages left without a word are kept as empty rows.
"""

import re

QUOTE = re.compile(r"(writes in|writes:|wrote:|says:|said:|^In article|^Quoted from|^\||^>)")


def body(message: str) -> str:
    """Body of a message, without quoted lines and signature; may be empty."""
    text = message.partition("\n\n")[2]
    text = _without_footer(text)
    return "\n".join(line for line in text.split("\n") if not QUOTE.search(line))


def _without_footer(text: str) -> str:
    """Drop what follows the last line that is blank or made of hyphens."""
    lines = text.strip().split("\n")
    breaks = [i for i, line in enumerate(lines) if i > 0 and not line.strip().strip("-")]
    return "\n".join(lines[: breaks[-1]]) if breaks else text
