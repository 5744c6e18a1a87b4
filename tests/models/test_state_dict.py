"""What a checkpoint may look like: every layout gives the same weights and says so, every fault is one sentence."""

import argparse
import io
import itertools
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
from timm.models import register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.build import build
from convrepro.models.state_dict import ENTRIES, PREFIXES, take
from convrepro.models.surgery import SurgeryReport
from convrepro.models.weights import read_checkpoint

pytestmark = pytest.mark.unit


@register_model
def state_dict_test_network(num_classes: int, in_chans: int, **_: object) -> nn.Module:
    conv, norm = nn.Conv2d(in_chans, 4, 3, padding=1), nn.BatchNorm2d(4)
    stem = nn.Sequential(OrderedDict(conv=conv, norm=norm, next=nn.Conv2d(4, 4, 3)))
    return nn.Sequential(OrderedDict(stem=stem, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, 2)))


def network() -> nn.Module:
    return build("state_dict_test_network", conv={"name": "standard", "where": "dense_kxk"}, num_classes=2)[0]


def drawn(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {key: value.clone() for key, value in network().state_dict().items()}


STATE = drawn()
OTHER = drawn(1)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_every_entry_and_every_stack_of_two_prefixes_gives_the_weights_and_says_what_was_taken():
    stacks = ["", *PREFIXES, *map("".join, itertools.product(PREFIXES, repeat=2))]
    for entry, prefix in itertools.product((None, *ENTRIES), stacks):
        state = {prefix + key: value for key, value in STATE.items()}
        taken = take({"epoch": 3, entry: state} if entry else state, network(), "ck.pth")
        assert same(taken.state, STATE), (entry, prefix)
        said = f"took {entry!r}" if entry else "took the whole file"
        assert str(taken) == (f"{said}, prefix {prefix!r}" if prefix else said)


def test_an_average_with_a_count_beside_it_and_what_else_a_module_holds_is_left_out_and_named():
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in STATE.items()}}
    taken = take({"model_ema": averaged}, network(), "ck.pth")
    assert same(taken.state, STATE)
    assert str(taken) == "took 'model_ema', prefix 'module.', left out n_averaged"


def test_a_network_with_a_child_that_is_called_like_a_prefix():
    inner = nn.Sequential(OrderedDict(network=nn.Sequential(OrderedDict(model=nn.Linear(2, 2)))))
    for prefix in ("", "network.", "module.", "model.network."):
        state = {prefix + key: value for key, value in inner.state_dict().items()}
        assert take(state, inner, "ck.pth").prefix == prefix


def test_several_entries_or_prefixes_are_taken_where_they_are_equal_and_named_where_they_are_not():
    wrapped = {f"module.{key}": value for key, value in STATE.items()}
    for one, two in itertools.combinations(ENTRIES, 2):
        assert take({one: STATE, two: wrapped}, network(), "ck.pth").entry == one
        with pytest.raises(ConvReproError, match=rf"ck\.pth hold different weights in '{one}' and '{two}'; save the"):
            take({one: STATE, two: OTHER}, network(), "ck.pth")
    both = {f"model.{key}": value for key, value in STATE.items()}
    assert take(both | wrapped, network(), "ck.pth").prefix == "module."
    different = {f"net.{key}": value for key, value in OTHER.items()}
    with pytest.raises(ConvReproError, match=r"hold several networks in 'net', with the prefixes 'model.' and 'net.'"):
        take({"net": both | different}, network(), "ck.pth")


def changed(key: str, change: Callable[[Tensor], object]) -> dict[object, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: some layouts are deprecated or in beta
        return {**STATE, key: change(STATE[key])}


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return spoil


WEIGHT = "stem.conv.weight"
FAULTS = {
    "empty": ({}, "hold no state dict: they are empty; valid: a state dict, or one under state_dict, "),
    "empty entry": ({"state_dict": {}, "epoch": 3}, r"no state dict: there are state_dict \(dict\), epoch \(int\)"),
    "only numbers": ({"a": 1, "b": [2]}, r"no state dict: there are a \(int\), b \(list\)"),
    "another entry": ({"params": STATE}, r"no state dict: there are params \(dict\)"),
    "many keys": ({f"k{n}": n for n in range(9)}, r"there are k0 \(int\), .* and 4 more; valid"),
    "a control character": ({"a\nb\x1b": 1}, r"there are a\\nb\\x1b \(int\)"),
    "an integer as key": ({0: STATE[WEIGHT]}, "have the key 0, which is not a text"),
    "a tuple as key": ({"model": {**STATE, (1, 2): STATE[WEIGHT]}}, r"the key \(1, 2\) in 'model', which is not"),
    "an integer": ({**STATE, "epoch": 3}, "hold epoch, which is an int, not a tensor"),
    "a list": (changed(WEIGHT, Tensor.tolist), "hold stem.conv.weight, which is a list, not a tensor"),
    "none": (changed(WEIGHT, lambda t: None), "hold stem.conv.weight, which is a NoneType, not a tensor"),
    "meta": (changed(WEIGHT, lambda t: t.to("meta")), "stem.conv.weight, which has a shape and no values"),
    "sparse": (changed("fc.weight", Tensor.to_sparse), r"hold fc.weight, which is sparse \(sparse_coo\)"),
    "csr": (changed("fc.weight", Tensor.to_sparse_csr), r"hold fc.weight, which is sparse \(sparse_csr\)"),
    "quantised": (
        changed(WEIGHT, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        r"stem.conv.weight, which is quantised \(qint8\); give the weights before",
    ),
    "complex": (changed(WEIGHT, lambda t: t.to(torch.complex64)), r"which is complex \(complex64\)"),
    "nan": (changed(WEIGHT, spoilt(float("nan"))), "hold values that are not finite, in stem.conv.weight; a diverged"),
    "inf": (changed("stem.norm.running_var", spoilt(float("inf"))), "not finite, in stem.norm.running_var"),
    "too large": (changed(WEIGHT, lambda t: t.double() + 1e300), "not finite, in stem.conv.weight"),
    "shape": (changed(WEIGHT, lambda t: t[:2]), r"do not fit .*: stem.conv.weight is \(2, 3, 3, 3\), not \(4,"),
    "integers": (changed(WEIGHT, Tensor.int), "do not fit .*: stem.conv.weight is int32, not float32"),
    "a count as float": (
        changed("stem.norm.num_batches_tracked", Tensor.float),
        "do not fit .*: stem.norm.num_batches_tracked is float32, not int64",
    ),
    "a missing key": ({k: v for k, v in STATE.items() if k != WEIGHT}, "do not fit .*: it lacks stem.conv.weight"),
    "an unknown key": ({**STATE, "net.x": STATE[WEIGHT]}, "do not fit .*: net.x is unknown"),
    "a list of tensors": (list(STATE.values()), "hold a list, not a state dict or a mapping that contains one"),
    "a tensor": (STATE[WEIGHT], "hold a Tensor, not a state dict"),
    "a namespace": (
        {"state_dict": STATE, "args": argparse.Namespace(lr=1)},
        r"cannot be read: it holds more than tensors and plain values: objects of the types argparse.Namespace, .*"
        r"torch.save\(content\['state_dict'\], 'weights.pth'\)",
    ),
    "a number of numpy": ({"state_dict": STATE, "acc": np.float64(1)}, r"of the types numpy\.\S*multiarray\.scalar, "),
    "a whole network": (nn.Sequential(nn.Conv2d(1, 1, 1)), r"a whole network, .*torch.save\(content.state_dict\(\), "),
}  # fmt: skip


def loaded(path) -> tuple[nn.Module, SurgeryReport]:
    conv = {"name": "standard", "where": "dense_kxk"}
    return build("state_dict_test_network", conv=conv, num_classes=2, weights=str(path))


@pytest.mark.filterwarnings("ignore")  # torch's: some layouts are deprecated or in beta
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_that_cannot_be_taken_is_one_sentence(tmp_path, fault, zipped):
    content, reason = FAULTS[fault]
    path = tmp_path / "ck.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConvReproError) as error:
        loaded(path)
    assert re.search(reason, str(error.value)), str(error.value)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert "damaged" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "ck.pth"
    path.write_bytes(safetensors.torch.save(STATE))
    assert same(loaded(path)[0].state_dict(), STATE), "safetensors under another name"
    torch.jit.script(nn.Linear(1, 1)).save(path)
    with pytest.raises(
        ConvReproError, match=r"it is a TorchScript archive, not a state dict; .*jit\.load\('.*ck\.pth'"
    ):
        loaded(path)
    whole = io.BytesIO()
    torch.save(STATE, whole)
    archive = io.BytesIO()
    np.savez(archive, weight=np.ones(2))
    for content in (b"", b"\x00" * 8 + b"{", b"text", whole.getvalue()[:-100], archive.getvalue(), b"\x80\x02}q\x00"):
        path.write_bytes(content)
        with pytest.raises(ConvReproError, match=r"ck\.pth cannot be read: damaged, or not a checkpoint$"):
            read_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_floating_point_numbers_of_other_widths_are_loaded(tmp_path, dtype):
    narrow = {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}
    torch.save(narrow, tmp_path / "ck.pth")
    restored = loaded(tmp_path / "ck.pth")[0].state_dict()
    assert same(restored, {key: value.to(restored[key].dtype) for key, value in narrow.items()})


def test_a_line_says_what_was_taken_and_whether_it_was_converted(tmp_path):
    path = tmp_path / "ck.pth"
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in STATE.items()}}, path)
    said = f"weights={path}: took 'model_state_dict', prefix 'module.'; loaded "
    kwargs = {"num_classes": 2, "weights": str(path)}
    assert loaded(path)[1].weights == f"{said}as they are"
    _, report = build("state_dict_test_network", conv={"name": "shift", "where": "dense_kxk"}, **kwargs)
    assert report.weights == f"{said}converted to shift"
    low_rank = {"name": "low_rank", "where": "dense_kxk", "rank": 2}
    replaced, report = build("state_dict_test_network", conv=low_rank, num_classes=2)
    assert report.weights is None
    torch.save(replaced.state_dict(), path)
    _, report = build("state_dict_test_network", conv=low_rank, **kwargs)
    assert report.weights == f"weights={path}: took the whole file; loaded as they are, with low_rank in place"
