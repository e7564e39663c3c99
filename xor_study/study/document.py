"""A document in a small markup, rendered to Markdown and to LaTeX from the same source.

Blocks are separated by empty lines: headings (`#`, `##`, `###`), paragraphs, lists (`- ` or `1. `), and on lines of
their own `!table NAME` and `!figure NAME`. In a line, `code` stands in backticks, $mathematics$ between dollars and
**bold** between asterisks; [text](address) is a link, [@key, @other] cites references, and [#NAME] or [#figure NAME]
refers to a table or figure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

_TOKEN = re.compile(
    r"`(?P<code>[^`]+)`|\$(?P<math>[^$]+)\$|\*\*(?P<bold>.+?)\*\*|\[(?P<cite>@[^\]]+)\]|\[#(?P<reference>[^\]]+)\]"
    r"|\[(?P<text>[^\]]+)\]\((?P<address>[^)]+)\)"
)

_ESCAPES = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}

_BREAKABLE, _BREAK = re.compile(r"([=./,]|\\_)"), r"\1\\allowbreak{}"
"""Where a line of code may break."""


class Table(NamedTuple):
    """A table of a document.

    Attributes:
        caption: in the markup.
        header: of the columns.
        rows: cells in the markup, as many as columns.
        columns: LaTeX's specification of each column, such as "l", "r" or "p{3cm}".
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    columns: Sequence[str]


class Reference(NamedTuple):
    """An entry of a bibliography: its kind, key, fields by name, and text as in the file."""

    kind: str
    key: str
    fields: Mapping[str, str]
    text: str


class Document(NamedTuple):
    """A document.

    Attributes:
        source: in the markup.
        tables: by name.
        captions: of the figures, by name; the figures are `figures/NAME.png` and `figures/NAME.pdf`.
        references: all that can be cited, by key.
    """

    source: str
    tables: Mapping[str, Table]
    captions: Mapping[str, str]
    references: Mapping[str, Reference]


def bibliography(text: str) -> dict[str, Reference]:
    """Return the entries of a BibTeX file by key; each field is on a line of its own.

    Args:
        text: of the file.
    """
    found = {}
    for match in re.finditer(r"^@(\w+)\{(\w+),\n(.*?)\n\}$", text, re.MULTILINE | re.DOTALL):
        fields = re.findall(r"^ *(\w+) = \{(.*)\},?$", match[3], re.MULTILINE)
        found[match[2]] = Reference(match[1], match[2], dict(fields), match[0])
    return found


def cited(document: Document) -> list[str]:
    """Return the keys of the references that a document cites, in the order of their first citation."""
    keys = (key for match in re.finditer(r"\[(@[^\]]+)\]", document.source) for key in _keys(match[1]))
    return list(dict.fromkeys(keys))


def _keys(cite: str) -> list[str]:
    return [key.strip().removeprefix("@") for key in cite.split(",")]


def as_bibtex(document: Document) -> str:
    """Return the BibTeX file of the references that a document cites."""
    return "\n\n".join(document.references[key].text for key in cited(document)) + "\n"


def _blocks(source: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the kind of each block ("#", "##", "###", "-", "1.", "!table", "!figure" or "") and its texts."""
    for block in re.split(r"\n\s*\n", source.strip()):
        mark, _, rest = block.partition(" ")
        if mark in ("-", "1."):
            items = re.split(r"^(?:- |\d+\. )", block, flags=re.MULTILINE)[1:]
            yield mark, [" ".join(item.split()) for item in items]
        elif mark in ("#", "##", "###", "!table", "!figure"):
            yield mark, [" ".join(rest.split())]
        else:
            yield "", [" ".join(block.split())]


def _rendered(text: str, plain: Callable[[str], str], render: Callable[[str, re.Match[str]], str]) -> str:
    """Render a line.

    Args:
        text: in the markup.
        plain: renders what stands between tokens.
        render: renders a token, given its kind.
    """
    parts, end = [], 0
    for token in _TOKEN.finditer(text):
        parts += [plain(text[end : token.start()]), render(str(token.lastgroup), token)]
        end = token.end()
    return "".join([*parts, plain(text[end:])])


def _numbers(document: Document) -> dict[str, int]:
    """Return the numbers of tables ("NAME") and figures ("figure NAME") in the order in which they appear."""
    numbers: dict[str, int] = {}
    for mark, prefix in (("!table", ""), ("!figure", "figure ")):
        names = [texts[0] for kind, texts in _blocks(document.source) if kind == mark]
        numbers |= {f"{prefix}{name}": number for number, name in enumerate(names, start=1)}
    return numbers


def as_markdown(document: Document) -> str:
    """Return a document as Markdown, tables included; figures are linked.

    Raises:
        KeyError: if a table, figure or reference is unknown.
    """
    numbers, keys = _numbers(document), cited(document)

    def line(text: str) -> str:
        def render(kind: str, token: re.Match[str]) -> str:
            if kind == "cite":
                return f"[{', '.join(str(keys.index(key) + 1) for key in _keys(token['cite']))}]"
            if kind == "reference":
                what = "Figure" if token["reference"].startswith("figure ") else "Table"
                return f"{what} {numbers[token['reference']]}"
            return token[0]

        return _rendered(text, str, render)

    parts = []
    for kind, texts in _blocks(document.source):
        if kind == "!table":
            table = document.tables[texts[0]]
            parts += [f"**Table {numbers[texts[0]]}.** {line(table.caption)}", _markdown_rows(table, line)]
        elif kind == "!figure":
            number = numbers[f"figure {texts[0]}"]
            parts.append(f"![Figure {number}](figures/{texts[0]}.png)")
            parts.append(f"**Figure {number}.** {line(document.captions[texts[0]])}")
        elif kind in ("-", "1."):
            marks = cycle("-") if kind == "-" else (f"{i}." for i in range(1, len(texts) + 1))
            parts.append("\n".join(f"{mark} {line(text)}" for mark, text in zip(marks, texts, strict=False)))
        else:
            parts.append(f"{kind} {line(texts[0])}".strip())
    entries = (f"{i}. {_entry(document.references[key])}" for i, key in enumerate(keys, start=1))
    return "\n\n".join([*parts, "## References", "\n".join(entries)]) + "\n"


def _entry(reference: Reference) -> str:
    """Return a reference in one line of Markdown."""
    fields = reference.fields
    names = fields.get("author", "").replace(" and others", " et al.").strip("{}").split(" and ")
    title = fields["title"].replace("{", "").replace("}", "")
    where = fields.get("journal") or fields.get("booktitle") or ""
    volume = f" {fields['volume']}" if "volume" in fields else ""
    number = f" ({fields['number']})" if "number" in fields else ""
    pages = f", {fields['pages'].replace('--', '-')}" if "pages" in fields else ""
    parts = [", ".join(names), title, f"{where}{volume}{number}{pages}", fields.get("note", "")]
    parts += [fields.get("origtitle", ""), fields.get("year", ""), fields.get("url", "")]
    return ". ".join(part.removesuffix(".") for part in parts if part)


def markdown_table(table: Table) -> str:
    """Return a table with its caption as a Markdown file of its own."""
    return f"{table.caption}\n\n{_markdown_rows(table, str)}\n"


def _markdown_rows(table: Table, line: Callable[[str], str]) -> str:
    rules = ["---:" if column == "r" else "---" for column in table.columns]
    rows = [[line(cell).replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)]
    rows.insert(1, rules)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def latex(text: str) -> str:
    """Return a line of the markup in LaTeX."""
    quotes = cycle(("``", "''"))

    def plain(part: str) -> str:
        return "".join(next(quotes) if letter == '"' else _ESCAPES.get(letter, letter) for letter in part)

    def render(kind: str, token: re.Match[str]) -> str:
        if kind == "code":
            code = "".join(_ESCAPES.get(letter, letter) for letter in token["code"])
            return rf"\texttt{{{_BREAKABLE.sub(_BREAK, code)}}}"
        if kind == "math":
            return token[0]
        if kind == "bold":
            return rf"\textbf{{{latex(token['bold'])}}}"
        if kind == "cite":
            return rf"\cite{{{','.join(_keys(token['cite']))}}}"
        if kind == "reference":
            name = token["reference"].removeprefix("figure ")
            is_figure = name != token["reference"]
            return rf"Figure~\ref{{fig:{name}}}" if is_figure else rf"Table~\ref{{tab:{name}}}"
        words = "".join(_ESCAPES.get(letter, letter) for letter in token["text"])
        # A page has no folder that a path could begin at.
        return rf"\href{{{token['address']}}}{{{words}}}" if "://" in token["address"] else words

    return _rendered(text, plain, render)


def latex_table(name: str, table: Table) -> str:
    r"""Return a table with its caption as LaTeX for `\input`; it needs the packages booktabs and longtable.

    Args:
        name: the table's label is `tab:NAME`.
        table: the table.
    """
    header, *rows = (" & ".join(map(latex, row)) + r" \\" for row in (table.header, *table.rows))
    lines = [rf"\begin{{longtable}}{{@{{}}{''.join(table.columns)}@{{}}}}"]
    lines += [rf"\caption{{{latex(table.caption)}}}\label{{tab:{name}}}\\", r"\toprule", header, r"\midrule"]
    lines += [r"\endfirsthead", r"\toprule", header, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
    return "\n".join([*lines, *rows, r"\end{longtable}"]) + "\n"


_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{amsmath,array,booktabs,float,graphicx,longtable}
\usepackage[numbers,sort&compress]{natbib}
\usepackage[hidelinks]{hyperref}
\emergencystretch=3em
\raggedbottom
\setlength{\tabcolsep}{4pt}
\setlength{\LTcapwidth}{\textwidth}
"""

_SECTIONS = {"##": "section", "###": "subsection"}


def as_latex(document: Document) -> str:
    """Return a document as LaTeX, which reads `tables/NAME.tex`, `figures/NAME.pdf` and `references.bib`.

    The first heading is the title; a section "Abstract" is the abstract.

    Raises:
        KeyError: if a table, figure or reference is unknown.
    """
    parts, abstract = [_PREAMBLE], False
    for kind, texts in _blocks(document.source):
        if kind.startswith("#") and abstract:
            parts.append(r"\end{abstract}")
        abstract = texts[0] == "Abstract" if kind.startswith("#") else abstract
        parts.append(_latex_block(document, kind, texts))
    unknown = [key for key in cited(document) if key not in document.references]
    if unknown:
        raise KeyError(unknown[0])
    end = [r"\bibliographystyle{unsrtnat}", r"\bibliography{references}", r"\end{document}"]
    return "\n\n".join([*parts, *end]) + "\n"


def _latex_block(document: Document, kind: str, texts: list[str]) -> str:
    first = texts[0]
    if kind == "#":
        return f"\\title{{{latex(first)}}}\n\\author{{}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle"
    if kind in _SECTIONS:
        return r"\begin{abstract}" if first == "Abstract" else rf"\{_SECTIONS[kind]}{{{latex(first)}}}"
    if kind == "!table":
        assert first in document.tables, first
        return rf"{{\footnotesize\input{{tables/{first}}}}}"
    if kind == "!figure":
        caption = rf"\caption{{{latex(document.captions[first])}}}\label{{fig:{first}}}"
        picture = rf"\includegraphics[width=0.6\textwidth,height=0.4\textheight,keepaspectratio]{{figures/{first}}}"
        return "\n".join([r"\begin{figure}[H]", r"\centering", picture, caption, r"\end{figure}"])
    if kind:
        environment = "itemize" if kind == "-" else "enumerate"
        items = [rf"\item {latex(text)}" for text in texts]
        return "\n".join([rf"\begin{{{environment}}}", *items, rf"\end{{{environment}}}"])
    return latex(first)
