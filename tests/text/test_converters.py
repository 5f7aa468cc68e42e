"""Web pages, PDFs, Word files and notebooks, made here byte by byte, become text through the converter."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Warned
from qwench.ops.text import converters
from qwench.ops.text.documents import ReadOptions, find_files, read_documents
from qwench.ops.text.types import Document

pytest.importorskip("markitdown")

PAGE = (
    "<html><head><title>T</title><style>p {}</style></head><body><h1>Überschrift</h1>"
    "<p>Erster <b>Absatz</b>.</p><script>alert(1)</script><ul><li>eins</li><li>zwei</li></ul></body></html>"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a converter opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def read(*paths: str, unchanged: Any = None, **options: Any) -> tuple[list[Document], list[Warned]]:
    chosen = ReadOptions(**options)
    got = list(read_documents(find_files(paths, chosen), chosen, unchanged=unchanged))
    return [g for g in got if isinstance(g, Document)], [g for g in got if isinstance(g, Warned)]


def text_of(document: Document) -> str:
    return "".join(segment.text for segment in document.segments())


def told(warnings: list[Warned]) -> list[tuple[str, str | None, bool]]:
    return [(w.kind, w.subject, w.failed) for w in warnings]


def pdf(*lines: str, compress: bool = False, trailer: str = "") -> bytes:
    """A PDF of one page with one line of text under another."""
    shown = "".join(f"BT /F1 12 Tf 72 {720 - 20 * n} Td ({line}) Tj ET\n" for n, line in enumerate(lines)).encode()
    stream = zlib.compress(shown) if compress else shown
    filter_ = b" /Filter /FlateDecode" if compress else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(stream), filter_, stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer\n<< /Size 6 /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (trailer.encode(), len(out))
    return out + b"xref\n0 6\n0000000000 65535 f \n" + table + end


def docx(*paragraphs: str) -> bytes:
    """A Word file with one heading and paragraphs."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    texts = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    title = '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Title</w:t></w:r></w:p>'
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{title}{texts}</w:body></w:document>',
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, '<?xml version="1.0" encoding="UTF-8"?>' + content)
    return buffer.getvalue()


def notebook(**changes: Any) -> bytes:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Heading\n", "Some *words* 你好"]},
        {"cell_type": "code", "metadata": {}, "source": "x = 1\nprint(x)", "outputs": [], "execution_count": 1},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **changes}).encode()


def test_each_kind_becomes_text_with_spans_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.html").write_text(PAGE, encoding="utf-8")
    Path("b.PDF").write_bytes(pdf("Hello from a page", "and a second line"))
    Path("c.docx").write_bytes(docx("First paragraph \u2013 grüß.", "Second one."))
    Path("d.ipynb").write_bytes(notebook())
    docs, warnings = read(".")
    assert warnings == []
    assert [d.path for d in docs] == ["a.html", "b.PDF", "c.docx", "d.ipynb"]
    assert {(d.spans, d.encoding, d.row) for d in docs} == {("converted", "utf-8", None)}
    assert [d.size for d in docs] == [os.path.getsize(d.path) for d in docs]
    page, paper, word, note = map(text_of, docs)
    assert page == "# Überschrift\n\nErster **Absatz**.\n\n* eins\n* zwei"
    assert paper == "Hello from a page\n\nand a second line"
    assert word == "# Title\n\nFirst paragraph \u2013 grüß.\n\nSecond one."
    assert note == "# Heading\nSome *words* 你好\n\n```python\nx = 1\nprint(x)\n```"
    for document in docs:
        data = text_of(document).encode()
        for segment in document.segments():
            assert data[segment.start_byte :].startswith(segment.text.encode())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("head", "codec"),
    [
        ("<meta charset=iso-8859-1>", "cp1252"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">', "cp1252"),
        ('<meta charset="gb2312">', "gb18030"),
        ('<?xml version="1.0" encoding="ISO-8859-1"?>', "latin-1"),
        ("<meta charset=latin1>", "utf-8"),  # a wrong claim on valid UTF-8
        ("", "utf-16"),
        ("", "utf-8-sig"),
    ],
)
def test_pages_say_their_encoding(head: str, codec: str) -> None:
    words = "价格 你好" if "gb" in codec else "größer als 5"
    Path("a.html").write_bytes(f"{head}<html><body><p>{words}</p></body></html>".encode(codec))
    docs, warnings = read("a.html")
    assert warnings == [] and text_of(docs[0]) == words


def test_pages_in_a_declared_a_guessed_or_no_encoding() -> None:
    words = "Le café était fermé à Noël, déjà l'été où naïveté et cœur se mêlent."
    Path("a.html").write_bytes(f"<p>{words}</p>".encode("cp1252"))
    docs, warnings = read("a.html")
    assert text_of(docs[0]) == words and told(warnings) == [("encoding", "a.html", False)]
    docs, warnings = read("a.html", encoding="cp1252")
    assert text_of(docs[0]) == words and warnings == []
    docs, warnings = read("a.html", encoding="utf-8")
    assert docs == [] and told(warnings) == [("encoding", "a.html", True)]


LOCK = "/Filter /Standard /V 1 /R 2 /P -4"
BROKEN = {
    "html.pdf": b"<html>not found</html>",
    "cut.pdf": pdf("x")[:200],
    "cut.docx": docx("x")[:300],
    "text.docx": b"plain text",
    "other.docx": b"PK\x05\x06" + b"\0" * 18,
    "cut.ipynb": notebook()[:50],
    "list.ipynb": b"[1, 2]",
    "old.ipynb": b'{"worksheets": [], "nbformat": 3}',
    "cell.ipynb": notebook(cells=[5]),
    "secret.pdf": pdf("x", trailer=f"/Encrypt << {LOCK} /O <{'00' * 32}> /U <{'11' * 32}> >> /ID [<00> <00>]"),
}


def test_broken_files_cost_themselves_and_one_sentence() -> None:
    for name, data in BROKEN.items():
        Path(name).write_bytes(data)
    Path("fine.html").write_text("<p>ok</p>")
    docs, warnings = read(".")
    assert [d.path for d in docs] == ["fine.html"]
    assert sorted(told(warnings)) == [("converter", name, True) for name in sorted(BROKEN)]
    messages = {w.subject: w.message for w in warnings}
    assert messages["html.pdf"] == "`html.pdf` cannot be converted: it is no PDF"
    assert messages["secret.pdf"] == "`secret.pdf` cannot be converted: it is protected by a password"
    assert "older than 4" in messages["old.ipynb"]
    assert all("\n" not in m and "Traceback" not in m and len(m) < 260 and m[-1] != "." for m in messages.values())


def test_a_scan_has_no_text_and_fails_only_when_named() -> None:
    Path("d").mkdir()
    Path("d/scan.pdf").write_bytes(pdf())
    Path("d/empty.docx").write_bytes(b"")
    assert told(read("d")[1]) == [("empty", "d/empty.docx", False), ("empty", "d/scan.pdf", False)]
    assert told(read("d/scan.pdf")[1]) == [("empty", "d/scan.pdf", True)]


def test_without_the_converter_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "_loaded", {})
    monkeypatch.setitem(sys.modules, "markitdown", None)
    Path("a.html").write_text(PAGE)
    Path("b.md").write_text("text")
    docs, warnings = read(".")
    assert [d.path for d in docs] == ["b.md"] and told(warnings) == [("converter", "a.html", True)]
    assert warnings[0].message == "`a.html` needs a converter: `pip install 'qwench[documents]'`"


def test_without_a_part_of_the_converter_the_line_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install markitdown` without its own extras leads to."""
    from markitdown.converters import _pdf_converter

    try:
        raise ImportError("pdfminer")
    except ImportError:
        monkeypatch.setattr(_pdf_converter, "_dependency_exc_info", sys.exc_info())
    Path("a.pdf").write_bytes(pdf("x"))
    docs, warnings = read("a.pdf")
    assert docs == [] and "pip install 'qwench[documents]'" in warnings[0].message


def test_unchanged_files_are_not_converted_until_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.html").write_text("<p>one</p>")
    Path("b.html").write_text("<p>two</p>")
    asked: list[tuple[str, str]] = []
    converted: list[str] = []
    real = converters.convert

    def counted(name: str, data: bytes, declared: str | None = None) -> tuple[str, str | None]:
        converted.append(name)
        return real(name, data, declared)

    monkeypatch.setattr(converters, "convert", counted)
    docs, _ = read(".", unchanged=lambda path, digest: asked.append((path, digest)) or path == "a.html")
    assert asked == [(d.path, d.content_hash) for d in docs] and converted == ["b.html"]
    assert [text_of(d) for d in docs] == ["one", "two"] and converted == ["b.html", "a.html"]


def test_a_late_conversion_that_fails_is_an_error_in_one_sentence() -> None:
    Path("a.pdf").write_bytes(b"no pdf")
    Path("b.pdf").write_bytes(b"%PDF-1.4\n" + b"%" * 2_000_000)
    docs, _ = read(".", unchanged=lambda *_: True)
    with pytest.raises(QwenchError, match="cannot be converted: it is no PDF"):
        list(docs[0].segments())
    os.remove("b.pdf")
    with pytest.raises(QwenchError, match=r"`b\.pdf` vanished before it was read"):
        list(docs[1].segments())


def test_a_page_from_standard_input() -> None:
    chosen = ReadOptions(stdin_name="page.html")
    (document,) = read_documents(find_files(["-"], chosen), chosen, io.BytesIO(PAGE.encode()))
    assert document.path == "page.html" and text_of(document).startswith("# Überschrift")


@pytest.mark.filterwarnings("ignore:HTML document")
def test_a_page_nested_beyond_recursion_still_gives_its_text() -> None:
    Path("deep.html").write_text("<div>" * 5000 + "deep down" + "</div>" * 5000)
    docs, warnings = read("deep.html")
    assert warnings == [] and text_of(docs[0]).strip() == "deep down"


def test_documents_do_not_load_the_converter_before_it_is_needed() -> None:
    Path("a.md").write_text("text")
    code = (
        "import sys\nfrom qwench.ops.text.documents import *\no = ReadOptions()\n"
        "assert len(list(read_documents(find_files(['a.md'], o), o))) == 1\n"
        "print([m for m in ('markitdown', 'pyarrow', 'charset_normalizer', 'magika') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
