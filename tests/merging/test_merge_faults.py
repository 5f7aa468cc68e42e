"""`qwench merge` when it is killed, when disks are full, and when inputs are damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.merging.options import MergeOptions, recipe_of
from qwench.ops.merging.plan import MergePlan, plan_merge
from safetensors.torch import load_file, save_file

from tests.tiny import qwen3_reranker


def big(folder: Path, seed: int, count: int = 40) -> Path:
    """A checkpoint of count * 4 megabytes."""
    folder.mkdir()
    torch.manual_seed(seed)
    tensors = {f"layers.{i}.weight": torch.randn(1000, 1000) for i in range(count)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def state(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_kill_and_resume_make_what_an_undisturbed_run_makes(qwench, tmp_path: Path) -> None:
    a, b = (big(tmp_path / n, i, 60) for i, n in enumerate("ab"))
    before = [state(a), state(b)]
    how = ["merge", a, b, "--t", "0.3", "--max-shard-size", "40MB", "--threads", "1"]
    assert qwench(*how, "--out", tmp_path / "want").returncode == 0
    command = [sys.executable, "-m", "qwench.cli.main", *map(str, how), "--out", str(tmp_path / "o"), "-q"]
    for least in (1, 3):
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        # A finished shard is in the journal: the kill comes in the middle of the work.
        while child.poll() is None and len(list(tmp_path.glob("o.part/*.safetensors"))) <= least:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.stderr.read()
        assert not (tmp_path / "o").exists() and (tmp_path / "o.part").exists()
    done = qwench(*how, "--out", tmp_path / "o", "--t", "0.4")
    assert done.returncode == 1 and "another job: --t was `0.3` and is `0.4`" in done.stderr
    done = qwench(*how, "--out", tmp_path / "o", "--json")
    assert done.returncode == 0 and '"resumed_bytes": 0' not in done.stdout, done.stderr
    assert state(tmp_path / "o") == state(tmp_path / "want")
    assert [state(a), state(b)] == before


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="mounting needs root on Linux")
def test_full_and_read_only_disks(qwench, tmp_path: Path) -> None:
    a, b = (big(tmp_path / n, i, 15) for i, n in enumerate("ab"))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = qwench("merge", a, b, "--out", disk / "o")
        assert done.returncode == 1 and "there is room for 0.0" in done.stderr, done.stderr
        assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = qwench("merge", a, b, "--out", disk / "o", "--out-dtype", "bfloat16")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_damaged_inputs_are_named(qwench, tmp_path: Path) -> None:
    a, b = (big(tmp_path / n, i, 2) for i, n in enumerate("ab"))
    file = b / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    done = qwench("merge", a, b, "--out", tmp_path / "o")
    assert done.returncode == 1 and str(file) in done.stderr and "damaged" in done.stderr
    assert not list(tmp_path.glob("o*"))


def test_a_gguf_file_is_an_input(qwench, tmp_path: Path) -> None:
    a, b = (qwen3_reranker(tmp_path / n, seed=i) for i, n in enumerate("ab"))
    assert qwench("convert", b, tmp_path / "b.gguf").returncode == 0
    for other, out in ((b, "plain"), (tmp_path / "b.gguf", "gguf")):
        done = qwench("merge", a, other, "--t", "0.25", "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "gguf"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_models_on_the_hub_are_compared_before_they_are_downloaded(tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata
    from huggingface_hub.utils import TensorInfo as Remote

    a = qwen3_reranker(tmp_path / "a")
    asked: list[str] = []

    def metadata(name: str, revision: str | None = None) -> SafetensorsRepoMetadata:
        asked.append(name)
        infos, at = {}, 0
        for key, tensor in load_file(a / "model.safetensors").items():
            shape = [*tensor.shape]
            if name == "org/other" and key.endswith("layers.1.mlp.up_proj.weight"):
                shape[0] += 1
            if name == "org/other" and key.endswith("norm.weight"):
                continue
            infos[key] = Remote("F32", shape, (at, at + tensor.nbytes))
        file = SafetensorsFileMetadata({}, infos)
        return SafetensorsRepoMetadata(
            None, False, dict.fromkeys(infos, "model.safetensors"), {"model.safetensors": file}
        )

    def downloaded(*args: object, **kwargs: object) -> None:
        raise RuntimeError("downloaded")

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(a / "config.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)
    for other in (str(a), "org/same"):
        with pytest.raises(QwenchError) as caught:
            plan_of(other, "org/other")
        words = caught.value.message
        assert "up_proj" in words and "lacks" in words and "input_layernorm" in words
    with pytest.raises(QwenchError, match="downloaded"):
        plan_of(str(a), "org/same")
    assert asked == ["org/other", "org/same", "org/other", "org/same"]


def plan_of(*models: str) -> MergePlan:
    options = MergeOptions(models, "o")
    return plan_merge(recipe_of(options), options)
