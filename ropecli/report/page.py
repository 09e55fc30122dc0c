"""What every report is made of: escaped HTML, tables, figures with captions, where it all came from, and the page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ropecli.errors import printable
from ropecli.plots import THEME, page_svg
from ropecli.report.figures import Draw, signed

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page may load nothing; its own style sheet is allowed."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(*parts: object) -> Html:
    """The parts one after the other; those that are not HTML already are escaped, control characters made visible."""
    return Html("".join(part if isinstance(part, Html) else escape(printable(str(part))) for part in parts))


def element(name: str, *inside: object, **attributes: str) -> Html:
    """An element; `class_` is class and `aria_label` aria-label."""
    words = "".join(f' {key.strip("_").replace("_", "-")}="{html(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{words}>{html(*inside)}</{name}>")


def block(text: str, label: str) -> Html:
    """Text to copy: one click marks it all. Its lines are kept."""
    return element("pre", Html("\n".join(html(line) for line in text.split("\n"))), tabindex="0", aria_label=label)


def pairs(values: Mapping[str, object]) -> Html:
    """Names with their values, as a list that takes as many columns as there is room for."""
    return element("dl", *(element("div", element("dt", key), element("dd", value)) for key, value in values.items()))


def table(label: str, head: Html, rows: Sequence[Html], kind: str = "numbers") -> Html:
    """A table in a box of its own, which scrolls where the page is narrower; `words` instead breaks its lines."""
    inner = element("table", element("thead", head), element("tbody", *rows), class_=kind)
    box = element("div", inner, class_="wide", role="region", tabindex="0", aria_label=label)
    return html(element("p", label, class_="caption"), box)


def headings(*words: str) -> Html:
    """One row of column headings."""
    return element("tr", *(element("th", word, scope="col") for word in words))


def figure(name: str, title: str, caption: str, draw: Draw, size: tuple[float, float] = (4.7, 3.2)) -> Html:
    """A figure with its caption, which is also what a screen reader says; see `ropecli.plots.page_svg`."""
    picture = Html(page_svg(name, printable(f"{title}. {caption}"), draw, size))
    return element("figure", picture, element("figcaption", element("b", title, "."), " ", caption))


def _style() -> Html:
    def variables(side: int) -> str:
        return "; ".join(f"--{name}: {colours[side]}" for name, colours in THEME.items())

    fonts = f"--sans: {SANS}; --mono: {MONO}"
    css = files("ropecli.report").joinpath("page.css").read_text("utf-8")
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}"
    return Html(f"<style>\n:root {{ {variables(0)}; {fonts} }}\n{dark}\n{css}</style>")


def whole_page(title: str, *sections: Html) -> str:
    """The text of a file that opens from disk."""
    head = (
        Html('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'),
        element("title", title),
        _style(),
    )
    body = element("main", *sections)
    return f'<!doctype html>\n<html lang="en">\n{element("head", *head)}\n{element("body", body)}\n</html>\n'


def ppl(nll: float | None) -> str:
    """exp(nll), with digits that a reader can use."""
    if nll is None:
        return "not finite"
    value = math.exp(min(nll, 700))
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def difference(delta: float | None, ci95: Sequence[float] | None) -> Html:
    """A difference in nats a token and its 95 % interval."""
    if delta is None:
        return html("not finite")
    interval = "interval unknown" if ci95 is None else f"{signed(ci95[0])} to {signed(ci95[1])}"
    return html(signed(delta), " ", element("small", interval))


def counted(count: int, what: str) -> str:
    """1 file, 2 files."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def sentence(text: str) -> Html:
    """A reason as a sentence: a capital, real minus signs, a full stop."""
    whole = text[:1].upper() + text[1:].rstrip(".").replace(" -", " −") + "."
    return Html(html(whole).replace(" %", "&nbsp;%"))


def provenance(command: str, facts: Mapping[str, object], data: Sequence[Mapping[str, Any]]) -> Iterator[Html]:
    """The last section: the command line, what it ran on, and the data files with their hashes."""
    yield element("h2", "How this was made")
    if command:
        yield element("h3", "The command")
        yield block(command, "the command")
    yield pairs(facts)
    rows = [
        element(
            "tr",
            element("td", source["path"]),
            element("td", counted(source["documents"], "document")),
            element("td", source["sha256"], class_="hash"),
        )
        for source in data
    ]
    yield table(f"Data: {counted(len(data), 'file')}", headings("file", "documents", "SHA-256"), rows, "words")


def versions_text(versions: Mapping[str, str]) -> str:
    """Names and versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
