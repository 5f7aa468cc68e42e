"""GGUF models in several files, as gguf's own writer makes them: any part opens all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.cast import same_bits
from qwench.ops.checkpoint.reader import Source
from qwench.ops.convert import ConvertOptions, convert

from tests import tiny
from tests.conftest import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny.byte_decoder(folder / "m")
    # gguf's writer refuses empty lists, so the tokenizer needs a merge.
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["ab"], tokenizer["model"]["merges"] = 257, [["a", "b"]]
    file.write_text(json.dumps(tokenizer))
    list(convert(ConvertOptions(str(model), str(folder / "m.gguf"), dtype="q8_0")))
    return folder / "m.gguf"


def split(whole: Path, folder: Path, tensors: int = 9) -> list[Path]:
    """The parts of a file, by gguf's own reader and writer."""
    import gguf

    folder.mkdir()
    reader = gguf.GGUFReader(whole)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / "m.gguf", arch, split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_any_part_opens_all(whole: Path, tmp_path: Path, qwench: Run) -> None:
    parts, want = split(whole, tmp_path / "parts"), Source(whole)
    assert [p.name for p in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        source = Source(part)
        assert source.files == parts and source.infos.keys() == want.infos.keys() and not source.problems
        assert source.config() == want.config() and source.reader.sides() == want.reader.sides()
        for name in want.infos:
            assert same_bits(source.reader.load(name), want.reader.load(name)), name
            source.reader.release(name)
    said = [qwench("chat", "-m", m, "hello", "--max-tokens", 12, "--temperature", 0) for m in (whole, parts[1])]
    assert said[0].returncode == 0 and said[0].stdout == said[1].stdout, said[1].stderr
    told = json.loads(qwench("inspect", parts[2], "--json").stdout)
    assert [f["name"] for f in told["files"]] == [p.name for p in parts] and not told["problems"]
    assert qwench("convert", parts[1], tmp_path / "out").returncode == 0
    assert qwench("diff", tmp_path / "out", whole, "--tolerance", "1e-6").returncode == 0


def test_llama_cpp_gets_the_first_part(whole: Path, tmp_path: Path, qwench: Run) -> None:
    pytest.importorskip("llama_cpp")
    parts = split(whole, tmp_path / "parts")
    how = ("hello", "--max-tokens", 8, "--temperature", 0, "--engine", "llama.cpp")
    said = [qwench("chat", "-m", m, *how) for m in (whole, parts[2])]
    assert said[0].returncode == said[1].returncode == 0 and said[0].stdout == said[1].stdout, said[1].stderr


def test_parts_that_do_not_belong(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "parts")
    parts[1].rename(tmp_path / "away")
    with pytest.raises(QwenchError, match=r"1 of the model's 3 parts are not there, such as .*00002-of-00003"):
        Source(parts[0])
    shutil.copy(parts[2], parts[1])
    with pytest.raises(QwenchError, match="it says that it is part 3 of 3"):
        Source(parts[2])
    (tmp_path / "away").rename(parts[1])
    alone = shutil.copy(parts[0], tmp_path / "alone.gguf")
    with pytest.raises(QwenchError, match="is one part of 3, and 1 of that name are there"):
        Source(Path(alone))
    other = split(whole, tmp_path / "other", 8)
    assert len(other) == 3
    shutil.copy(other[2], parts[2])
    with pytest.raises(QwenchError, match=r"twice in the file|tensors, and it says"):
        Source(parts[0])
