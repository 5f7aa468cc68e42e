"""Recipes that mergekit would not read either, or that ask for what is not there, are one sentence each."""

from __future__ import annotations

from pathlib import Path

import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.merging.recipe import from_yaml

PLAIN = "merge_method: linear\nmodels:\n- model: A\n- model: B\n"


def read(folder: Path, text: str) -> object:
    (folder / "recipe.yml").write_text(text)
    return from_yaml(folder / "recipe.yml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: linear\nmodels: 3", "`models` must be a list, each an object, and is `3`"),
        ("merge_method: linear\nmodels: [A]", "`models` must be a list, each an object"),
        ("merge_method: linear\nmodels: [{model: ''}]", r"`models\[0\]\.model` must be a name"),
        ("merge_method: linear\nmodels: [{parameters: {}}]", r"does not say `models\[0\]\.model`"),
        ("merge_method: linear\nmodels: [{model: {model: {path: A, branch: x}}}]", "not understood"),
        (PLAIN + "parameters: [1]", r"`parameters` must be an object, and is `\[1\]`"),
        (PLAIN + "parameters: {weight: .nan}", "`parameters.weight` must be a number, a gradient"),
        (PLAIN + "parameters: {weight: [{filter: 3, value: 1}]}", "`parameters.weight` must be"),
        (PLAIN + "parameters: {weight: [{filter: mlp}]}", "`parameters.weight` must be"),
        (PLAIN + "parameters: {weight: [{value: 1}, 2]}", "`parameters.weight` must be"),
        (PLAIN + "dtype: int8", '`dtype` must be one of "float64", "float32", "bfloat16", "float16", and is `"int8"`'),
        (PLAIN + "dtype: 16", "`dtype` must be text, and is `16`"),
        (PLAIN + "qwench: x", "`qwench` must be an object"),
        (PLAIN + "tokenizer_source: {model: [C]}", "not understood"),
        (PLAIN + "base_model: ''", "`base_model` must be a name"),
        (PLAIN + "merge_method: linear", 'the key "merge_method" is there twice'),
        ("merge_method: slerp\nslices: [{sources: [{model: A, layer_range: [-1, 2]}]}]", "layer_range` must be a list"),
        ("merge_method: slerp\nslices: [{sources: [{model: A, layer_range: [true, 2]}]}]", "layer_range` must be"),
    ],
)
def test_what_a_recipe_may_not_say_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(QwenchError, match=words) as caught:
        read(tmp_path, text)
    assert "\n" not in caught.value.message


def test_what_it_may_say_is_read(tmp_path: Path) -> None:
    made = read(tmp_path, PLAIN + "dtype: torch.bfloat16\nparameters: {weight: 1e-10, normalize: true, fill: null}")
    assert made.models == ["A", "B"] and made.dtype == "bfloat16"
    assert made.parameters == {"weight": "1e-10", "normalize": True}
