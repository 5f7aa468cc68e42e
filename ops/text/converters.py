""".html, .pdf, .docx and .ipynb become Markdown text, by markitdown's converters (extra `[documents]`).

The converters are called one by one and not through the MarkItDown class: that one loads a model to guess file types,
tries its plain-text converter on what another one failed at, and can be made to fetch. Nothing here opens a socket.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Warned
from .decode import Undecodable, settle, stated
from .inputs import Found, ReadOptions, lost, quoted
from .segments import text_segments
from .sources import Source
from .types import Document, Segment

INSTALL = "pip install 'qwench[documents]'"
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{2,40})", re.IGNORECASE)


class NotInstalled(Exception):
    """markitdown, or the part of it for this kind of file, is missing."""


def converted_document(
    item: Found,
    source: Source,
    options: ReadOptions,
    unchanged: Callable[[str, str], bool] | None,
    segment_chars: int,
) -> Iterator[Document | Warned]:
    """The document of a file that has to be converted, or a `Warned` (failed) of kind `converter` or `encoding`.

    A file without any text in it, such as a scan, is `empty`, and failed when it was named.
    """
    with source.open() as stream:
        data = stream.read()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    document = partial(
        Document, path=item.path, content_hash=digest, size=len(data), encoding="utf-8", spans="converted"
    )
    if unchanged is not None and unchanged(item.path, digest):
        del data
        yield document(segments=partial(_late_segments, item, source, options, segment_chars, digest))
        return
    try:
        text, note = convert(item.path, data, options.encoding)
    except NotInstalled:
        yield Warned("converter", f"{quoted(item.path)} needs a converter: `{INSTALL}`", item.path, True)
    except Undecodable as error:
        yield Warned("encoding", f"{quoted(item.path)} {error}", item.path, True)
    except QwenchError as error:
        yield Warned("converter", error.message, item.path, True)
    else:
        if note:
            yield Warned("encoding", f"{quoted(item.path)} {note}", item.path)
        if not text.strip():
            yield Warned("empty", f"{quoted(item.path)} has no text in it", item.path, item.named)
            return
        yield document(segments=partial(text_segments, text, segment_chars=segment_chars))


def _late_segments(
    item: Found, source: Source, options: ReadOptions, segment_chars: int, digest: str
) -> Iterator[Segment]:
    """Convert only now.

    Raises:
        QwenchError: the file is gone, has changed, or cannot be converted.
    """
    try:
        with source.open() as stream:
            data = stream.read()
        text, _ = convert(item.path, data, options.encoding)
    except NotInstalled:
        raise QwenchError(f"{quoted(item.path)} needs a converter", hint=INSTALL) from None
    except OSError as error:
        raise QwenchError(lost(item, error).message) from error
    except Undecodable as error:
        raise QwenchError(f"{quoted(item.path)} {error}") from error
    if hashlib.blake2b(data, digest_size=16).hexdigest() != digest:
        raise QwenchError(f"{quoted(item.path)} changed while it was read", hint="run the command again")
    yield from text_segments(text, segment_chars=segment_chars)


def convert(name: str, data: bytes, declared: str | None = None) -> tuple[str, str | None]:
    """Markdown of a file.

    Args:
        name: its name, whose suffix says what it is.
        data: its bytes.
        declared: encoding of an .html file without a BOM, above what the file says itself.

    Returns:
        (text with line feeds, what to say about the encoding or None)

    Raises:
        NotInstalled: the extra `[documents]` is missing.
        Undecodable: an .html file whose encoding is unclear.
        QwenchError: the file is broken.
    """
    suffix = name.lower()[name.rfind(".") :]
    note = None
    converters = _converters()
    if suffix in (".html", ".htm", ".xhtml"):
        text, note = _html_text(data, declared)
        data, suffix = text.encode(), ".html"
    elif suffix == ".ipynb":
        _check_notebook(name, data)
    elif suffix == ".pdf" and b"%PDF-" not in data[:1024]:
        raise _broken(name, "it is no PDF")
    elif suffix == ".docx" and not data.startswith(b"PK"):
        raise _broken(name, "it is no .docx file")
    try:
        result = converters[suffix](data)
    except Exception as error:  # third-party parsers on foreign bytes raise anything
        if type(error).__name__ == "MissingDependencyException":
            raise NotInstalled from error
        raise _broken(name, _reason(error)) from error
    return _tidy(result), note


_loaded: dict[str, Callable[[bytes], str]] = {}


def _converters() -> dict[str, Callable[[bytes], str]]:
    """Suffix -> converter; markitdown takes half a second to import, so this waits for the first file that needs it."""
    if _loaded:
        return _loaded
    for module in ("pdfminer", "pdfplumber", "markitdown", "mammoth", "bs4"):
        logging.getLogger(module).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    warnings.filterwarnings("ignore", message="HTML document is too deeply nested")  # its text is all there, unstyled
    try:
        import markitdown
        from markitdown import converters
    except ImportError as error:
        raise NotInstalled from error

    def bound(converter: Any, suffix: str) -> Callable[[bytes], str]:
        info = markitdown.StreamInfo(extension=suffix, charset="utf-8")
        return lambda data: converter.convert(io.BytesIO(data), info).markdown

    _loaded[".html"] = bound(converters.HtmlConverter(), ".html")
    _loaded[".pdf"] = bound(converters.PdfConverter(), ".pdf")
    _loaded[".docx"] = bound(converters.DocxConverter(), ".docx")
    _loaded[".ipynb"] = bound(converters.IpynbConverter(), ".ipynb")
    return _loaded


def _html_text(data: bytes, declared: str | None) -> tuple[str, str | None]:
    """Decoded HTML: by BOM or declaration, else UTF-8, else what the page says, else a guess."""
    said = _XML_ENCODING.search(data[:1024]) or _META_CHARSET.search(data[:4096])
    if declared is None and said is not None and stated(data[:4], None)[0] is None:
        try:
            return data.decode("utf-8"), None
        except UnicodeDecodeError:
            pass
        try:
            return data.decode(_web_codec(said[1].decode("ascii"))), None
        except (UnicodeError, LookupError):
            pass
    settled = settle(lambda: [data], data[:8], declared)
    text = data[settled.bom :].decode(settled.codec, settled.errors)
    return text, settled.remark


def _web_codec(name: str) -> str:
    """What browsers take a name for: https://encoding.spec.whatwg.org/#names-and-labels"""
    wider = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
    wider |= {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "ks_c_5601-1987": "cp949", "euc-kr": "cp949"}
    return wider.get(name.lower(), name)


def _check_notebook(name: str, data: bytes) -> None:
    """The notebook converter takes any JSON and makes nothing of old notebooks without a word."""
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise _broken(name, "it is no JSON") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        old = isinstance(notebook, dict) and "worksheets" in notebook
        raise _broken(name, "its format is older than 4, Jupyter saves it anew" if old else "it is no notebook")


def _reason(error: BaseException) -> str:
    if "Password" in type(error).__name__ or "Password" in type(error.__cause__ or error.__context__).__name__:
        return "it is protected by a password"
    lines = str(error).strip().splitlines()
    words = (lines[0] if lines else type(error).__name__).rstrip(". ")
    return words if len(words) <= 160 else words[:160] + "..."


def _broken(name: str, reason: str) -> QwenchError:
    return QwenchError(f"{quoted(name)} cannot be converted: {reason}")


def _tidy(text: str) -> str:
    """Line feeds alone, no trailing white space, no more than one blank line, nothing that UTF-8 cannot hold."""
    lines = (line.rstrip() for line in re.split(r"\r\n|\r|\n", text))
    tidy = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return tidy.encode("utf-8", "replace").decode()
