"""Pickled weights: plain tensors come through bit for bit, and nothing else is opened, called or allocated."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from veneer.errors import AdapterFormatError
from veneer.formats.pickles import READERS, read_pickle, read_weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.bool]


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def assert_refused(path, *parts, reader=read_weights):
    with pytest.raises(AdapterFormatError) as caught:
        reader(path)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_through_bit_for_bit(tmp_path, dtype):
    tensors = {"a.b": torch.arange(15).reshape(3, 5).to(dtype), "turned": torch.arange(15).reshape(3, 5).to(dtype).T}
    read, metadata = read_weights(saved(tmp_path / "x.pt", tensors))
    assert metadata == {}
    assert list(read) == ["a.b", "turned"]
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == dtype for name in tensors)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict"])
def test_a_state_dict_may_lie_under_one_key(tmp_path, key):
    state = nn.Linear(7, 5).state_dict()  # an OrderedDict with attributes of its own
    read = read_pickle(saved(tmp_path / "x.bin", {key: state}))
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_parameters_become_plain_tensors_and_tied_weights_are_read(tmp_path):
    weight = nn.Parameter(torch.randn(5, 7))
    read = read_pickle(saved(tmp_path / "x.pt", OrderedDict(one=weight, two=weight)))
    assert type(read["one"]) is torch.Tensor
    assert not read["two"].requires_grad
    assert torch.equal(read["two"], weight)


def test_a_safetensors_file_is_read_by_its_ending_with_its_metadata(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors", metadata={"alpha": "5"})
    tensors, metadata = read_weights(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], torch.ones(3))
    assert metadata["alpha"] == "5"


class Marker:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def archive_with(path, program):
    """Write an archive of torch.save whose program is replaced."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, program(old.read(name)) if name.endswith("/data.pkl") else old.read(name))
    return path


def test_a_program_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    for value in (Marker(marker), {"a": torch.ones(3), "b": Marker(marker)}):
        assert_refused(saved(tmp_path / "x.pt", value), "posix.mkdir", "not opened")
    assert not marker.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert marker.exists()  # the test itself can fail


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (b"cbuiltins\nbytearray\n(\x8a\x06\x00\x00\x00\x00\x00\x10tR.", "builtins.bytearray"),
        (b"ctorch\nTensor\n(\x8a\x06\x00\x00\x00\x00\x00\x10tR.", "torch.Tensor"),
        (b"ctorch.storage\nUntypedStorage\n(\x8a\x06\x00\x00\x00\x00\x00\x10tR.", "torch.storage.UntypedStorage"),
    ],
)
def test_calls_that_torch_allows_but_weights_do_not_need_are_refused(tmp_path, call, named):
    """Each would allocate 16 TiB within torch's own list of safe calls."""
    assert_refused(archive_with(tmp_path / "x.pt", lambda _: b"\x80\x02" + call), named, "not opened")


def test_a_view_larger_than_the_file_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**6)}, tmp_path / "x.pt")
    assert_refused(tmp_path / "x.pt", "claim 4000000 bytes")


def test_a_storage_that_lies_about_its_length_is_refused(tmp_path):
    def longer(program):
        assert program.count(b"K\x03") == 2  # the storage's length and the tensor's
        return program.replace(b"K\x03", b"J\x00\x00\x00\x40")

    assert_refused(archive_with(tmp_path / "x.pt", longer), "not a file of weights")


def test_a_compressed_archive_is_refused(tmp_path):
    saved(tmp_path / "x.pt", {"a": torch.zeros(10**6)})
    with zipfile.ZipFile(tmp_path / "x.pt") as old:
        with zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    assert (tmp_path / "y.pt").stat().st_size < 10**5
    assert_refused(tmp_path / "y.pt", "is a compressed archive; torch.save writes none")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (torch.ones(3), ["Tensor", "state dict"]),
        ([torch.ones(3)], ["list", "state dict"]),
        ({"a": torch.ones(3), "epoch": 4}, ["'epoch' is a int"]),
        ({"model": {"a": torch.ones(3)}}, ["'model' is a dict"]),
        ({7: torch.ones(3)}, ["7 is a Tensor"]),
        ({"a": torch.tensor([1.0, torch.nan])}, ["a holds NaN"]),
        ({"a": torch.tensor([-torch.inf]), "b": torch.tensor([torch.nan])}, ["a holds NaN", "b holds NaN"]),
        ({"a": torch.ones(3, dtype=torch.complex64)}, ["ComplexFloatStorage"]),
        ({"a": torch.ones(3).to_sparse()}, ["sparse"]),
        ({}, ["no tensors"]),
    ],
)
def test_what_is_no_table_of_finite_tensors_is_refused_by_name(tmp_path, content, parts):
    assert_refused(saved(tmp_path / "x.pt", content), *parts)


def test_other_files_are_named_for_what_they_are(tmp_path):
    assert_refused(tmp_path / "nowhere.pt", "no file at")
    assert_refused(tmp_path, "no file at")
    (tmp_path / "x.npz").write_bytes(b"")
    assert_refused(tmp_path / "x.npz", "'.npz' are not read", *READERS)
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    assert_refused(tmp_path / "x.pt", "not a file that torch.save writes")
    saved(tmp_path / "old.pt", {"a": torch.ones(3)}, _use_new_zipfile_serialization=False)
    assert_refused(tmp_path / "old.pt", "torch 1.6 or later")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("hello", b"")
    assert_refused(tmp_path / "z.pt", "not one that torch.save writes")


def test_a_file_cut_or_changed_anywhere_gives_the_typed_error_or_tensors(tmp_path):
    data = saved(tmp_path / "x.pt", {"a.lora_A": torch.ones(3, 7), "a.lora_B": torch.ones(5, 3)}).read_bytes()
    generator = torch.Generator().manual_seed(0)
    for end in range(0, len(data), 37):
        (tmp_path / "x.pt").write_bytes(data[:end])
        assert_refused(tmp_path / "x.pt")
    outcomes = set()
    for _ in range(300):
        position, value = (int(torch.randint(0, limit, (1,), generator=generator)) for limit in (len(data), 256))
        changed = bytearray(data)
        changed[position] = value
        (tmp_path / "x.pt").write_bytes(changed)
        try:
            read_weights(tmp_path / "x.pt")
            outcomes.add("read")
        except AdapterFormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_file_above_the_limit_is_not_opened(tmp_path):
    with (tmp_path / "x.pt").open("wb") as file:  # sparse: no disk is used
        file.seek(9 * 2**30)
        file.write(struct.pack("<Q", 0))
    assert_refused(tmp_path / "x.pt", "at most")
