"""Broken and hostile files: every reader answers with the typed error or a finite state, soon and in little memory."""

import json
import random
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from veneer.errors import AdapterFormatError
from veneer.formats.adapterhub import read_adapterhub
from veneer.formats.diffusers import read_diffusers
from veneer.formats.kohya import read_kohya
from veneer.formats.loralib import read_loralib
from veneer.formats.peft import read_peft

NAMES = ("enc.query", "enc.value")
PEFT_SETTINGS = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": ["query", "value"]}
HUB_SETTINGS = {
    "config": {
        "architecture": "lora",
        "r": 3,
        "alpha": 5,
        "attn_matrices": ["q", "v"],
        "composition_mode": "add",
        "use_gating": False,
    }
}
KEYS = {  # format -> the keys of A and B of a module
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "loralib": ("{}.lora_A", "{}.lora_B"),
    "adapterhub": ("{}.loras.task.lora_A", "{}.loras.task.lora_B"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
    "diffusers": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
}
FORMATS = list(KEYS)
FILES = {"peft": "adapter_model.safetensors", "adapterhub": "adapter.safetensors"}
SETTINGS = {"peft": PEFT_SETTINGS, "adapterhub": HUB_SETTINGS}
READERS = {
    "peft": lambda path, _: read_peft(path.parent),
    "loralib": lambda path, _: read_loralib(path, alpha=5),
    "adapterhub": lambda path, _: read_adapterhub(path.parent),
    "kohya": lambda path, names: read_kohya(path, names=names),
    "diffusers": lambda path, _: read_diffusers(path),
}


class Case:
    """One format in a folder of its own: its tensor file, its settings and its reader."""

    def __init__(self, kind, folder):
        self.kind, self.names = kind, NAMES
        self.path = folder / FILES.get(kind, "x.safetensors")
        self.config = folder / "adapter_config.json"
        if kind in SETTINGS:
            self.config.write_text(json.dumps(SETTINGS[kind]))

    def keys(self, name):
        return tuple(key.format(name.replace(".", "_") if self.kind == "kohya" else name) for key in KEYS[self.kind])

    def tensors(self, names=NAMES):
        generator = torch.Generator().manual_seed(0)
        found = {}
        for name in names:
            A, B = self.keys(name)
            found |= {A: torch.randn(3, 7, generator=generator), B: torch.randn(5, 3, generator=generator)}
        return found

    def read(self):
        return READERS[self.kind](self.path, self.names)

    def outcome(self):
        """Return "refused" or "read"; any other exception goes through and fails the test."""
        try:
            state = self.read()
        except AdapterFormatError:
            return "refused"
        tensors = [tensor for update in state.updates.values() for tensor in update.tensors().values()]
        assert all(bool(tensor.isfinite().all()) for tensor in [*tensors, *state.trained.values()])
        return "read"


@pytest.fixture(params=FORMATS)
def case(request, tmp_path):
    return Case(request.param, tmp_path)


def test_the_files_that_are_broken_below_are_good_ones(case):
    case.path.write_bytes(save(case.tensors()))
    state = case.read()
    assert tuple(state.updates) == NAMES
    A, B = case.keys("enc.value")
    assert torch.equal(state.updates["enc.value"].A, case.tensors()[A])
    assert torch.equal(state.updates["enc.value"].B, case.tensors()[B])


def header_of(data):
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end


def test_a_file_cut_or_lengthened_at_any_boundary_is_refused(case):
    data = save(case.tensors())
    header, body = header_of(data)
    edges = {0, 8, body, len(data)} | {body + edge for entry in header.values() for edge in entry["data_offsets"]}
    ends = {edge + step for edge in edges for step in (-1, 0, 1)} | set(range(8, body, 7))
    for end in sorted(ends - {-1, len(data)}):
        case.path.write_bytes(data[:end] + b"\0" * (end - len(data)))
        assert case.outcome() == "refused", end


@pytest.mark.parametrize("part", ["length", "header", "body"])
def test_bytes_changed_anywhere_give_a_finite_state_or_the_typed_error(case, part):
    data = save(case.tensors())
    _, body = header_of(data)
    begin, end = {"length": (0, 8), "header": (8, body), "body": (body, len(data))}[part]
    source = random.Random(part)
    outcomes = set()
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 8))):
            changed[source.randrange(begin, end)] = source.choice((source.randrange(256), 0, 0x7F, 0xFF))
        case.path.write_bytes(changed)
        outcomes.add(case.outcome())
    assert "refused" in outcomes
    assert part != "body" or "read" in outcomes


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_settings_changed_anywhere_give_a_state_or_the_typed_error(kind, tmp_path):
    case = Case(kind, tmp_path)
    case.path.write_bytes(save(case.tensors()))
    data, source, outcomes = case.config.read_bytes(), random.Random(0), set()
    for _ in range(700):
        changed = bytearray(data)
        for _ in range(source.choice((1, 1, 2))):
            position = source.randrange(len(data))
            changed[position : position + source.choice((0, 1, 2))] = source.choice(
                (b"", b"0", b"-", b"9", b"e9", b"null", b"[", b'"', b"\xff", bytes([source.randrange(256)]))
            )
        case.config.write_bytes(changed)
        outcomes.add(case.outcome())
    assert outcomes == {"read", "refused"}


def file_with(header, body=b"\0" * 144, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(begin, end, shape=(3, 7), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def lying(A, B):
    """Return the lies about a file whose A takes the bytes 0-84 and B 84-144."""
    good = {A: entry(0, 84), B: entry(84, 144, (5, 3))}
    text = json.dumps(good)
    return {
        "no header": file_with(b""),
        "a length of 2**32": file_with(good, length=2**32),
        "a length of 2**62": file_with(good, length=2**62),
        "a length of 2**64 - 1": file_with(good, length=2**64 - 1),
        "a length too small": file_with(good, length=9),
        "overlap": file_with({A: entry(0, 84), B: entry(80, 140, (5, 3))}),
        "the same bytes": file_with({A: entry(0, 84), B: entry(0, 60, (5, 3))}),
        "a hole": file_with({A: entry(0, 84), B: entry(88, 148, (5, 3))}, b"\0" * 148),
        "beyond the end": file_with({A: entry(0, 84), B: entry(84, 10**6, (5, 3))}),
        "far beyond the end": file_with({A: entry(0, 84), B: entry(2**62, 2**62 + 60, (5, 3))}),
        "negative": file_with({A: entry(-84, 0), B: entry(0, 60, (5, 3))}),
        "reversed": file_with({A: entry(84, 0), B: entry(84, 144, (5, 3))}),
        "fractions": file_with({A: entry(0, 84.0), B: entry(84, 144, (5, 3))}),
        "a shape of 2**62": file_with({A: entry(0, 84, (2**31, 2**31)), B: entry(84, 144, (5, 3))}),
        "a shape that overflows": file_with({A: entry(0, 84, (2**33, 2**33)), B: entry(84, 144, (5, 3))}),
        "a negative shape": file_with({A: entry(0, 84, (-3, -7)), B: entry(84, 144, (5, 3))}),
        "a shape larger than its bytes": file_with({A: entry(0, 84, (4, 7)), B: entry(84, 144, (5, 3))}),
        "a type nobody knows": file_with({A: entry(0, 84, dtype="F33"), B: entry(84, 144, (5, 3))}),
        "a type as a number": file_with({A: entry(0, 84, dtype=32), B: entry(84, 144, (5, 3))}),
        "no offsets": file_with({A: {"dtype": "F32", "shape": [3, 7]}, B: entry(84, 144, (5, 3))}),
        "a list": file_with([A, B]),
        "a number": file_with(b"7"),
        "null": file_with({A: None, B: entry(84, 144, (5, 3))}),
        "nested": file_with(b"[" * 10**5),
        "nested in metadata": file_with(b'{"__metadata__":' + b'{"a":' * 10**5 + b"0" + b"}" * (10**5 + 1)),
        "metadata of numbers": file_with({"__metadata__": {"r": 3}, **good}),
        "a key twice": file_with((text[:-1] + ", " + text[1:]).encode()),
        "not UTF-8": file_with(text.replace("enc", "\xff").encode("latin-1")),
        "half a surrogate": file_with(text.replace("enc", "\\ud800").encode()),
        "not closed": file_with(text[:-1].encode()),
        "more after the end": file_with(text.encode() + b"{}"),
    }


LIES = list(lying("A", "B"))


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(case, lie):
    case.names = ("enc",)
    A, B = case.keys("enc")
    case.path.write_bytes(file_with({A: entry(0, 84), B: entry(84, 144, (5, 3))}))
    assert case.outcome() == "read"
    case.path.write_bytes(lying(A, B)[lie])
    assert case.outcome() == "refused"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("lie", [lie for lie in LIES if "2**" in lie or "overflow" in lie])
def test_what_a_header_asks_for_is_not_allocated(case, lie):
    """Under a limit of 256 MiB above what is in use, a larger allocation would be a MemoryError."""
    import resource

    case.path.write_bytes(lying(*case.keys("enc"))[lie])
    case.outcome()  # whatever a first call imports and caches is there
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, before[1]))
    try:
        with pytest.raises(MemoryError):
            bytearray(2**29)  # the limit holds
        assert case.outcome() == "refused"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float8_e5m2", "complex64"])
@pytest.mark.parametrize("position", [0, 1])
def test_matrices_of_other_number_types_are_refused_by_name(case, dtype, position):
    tensors = case.tensors()
    key = case.keys("enc.value")[position]
    tensors[key] = tensors[key].to(getattr(torch, dtype))
    case.path.write_bytes(save(tensors))
    with pytest.raises(AdapterFormatError) as caught:
        case.read()
    assert dtype in str(caught.value)
    assert "enc" in str(caught.value)
    assert "value" in str(caught.value)


SHAPES = {
    "scalars": ((), ()),
    "vectors": ((7,), (5,)),
    "no rank": ((0, 7), (5, 0)),
    "no input": ((3, 0), (5, 3)),
    "ranks differ": ((4, 7), (5, 3)),
    "turned": ((7, 3), (3, 5)),
    "four against two": ((3, 7, 2, 2), (5, 3)),
    "seven dimensions": ((3, 7, 1, 1, 1, 1, 1), (5, 3, 1, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("shapes", SHAPES)
def test_matrices_of_shapes_that_fit_nothing_are_refused(case, shapes):
    for tensors in ({}, case.tensors(["enc.query"])):  # alone, and beside a good layer
        tensors |= dict(zip(case.keys("enc.value"), map(torch.ones, SHAPES[shapes]), strict=True))
        case.path.write_bytes(save(tensors))
        assert case.outcome() == "refused"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("position", [0, 1])
def test_nan_and_infinity_are_refused_with_the_name_of_the_tensor(case, value, dtype, position):
    tensors = {key: tensor.to(dtype) for key, tensor in case.tensors().items()}
    key = case.keys("enc.value")[position]
    tensors[key][2, 1] = value
    case.path.write_bytes(save(tensors))
    with pytest.raises(AdapterFormatError) as caught:
        case.read()
    assert key in str(caught.value)
    assert "NaN or infinity" in str(caught.value)


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_a_rank_in_the_settings_that_the_tensors_have_not_is_refused(kind, tmp_path):
    case = Case(kind, tmp_path)
    case.path.write_bytes(save(case.tensors()))
    case.config.write_text(json.dumps(SETTINGS[kind]).replace('"r": 3', '"r": 4'))
    assert case.outcome() == "refused"


UNICODE = [
    "enc.größe",
    "слой.запрос",
    "層.查詢",
    "🧠.q",
    "e\u0301nc",
    "a b",
    "tab\there",
    "\u202eenc",
    "nul\0l",
    'quo"te',
]


@pytest.mark.parametrize("name", UNICODE)
def test_names_of_any_letters_are_kept_as_they_are(case, name):
    case.names = (name,)
    save_file(case.tensors([name]), case.path)
    assert list(case.read().updates) == [name]


def test_names_that_look_alike_but_are_not_the_same_are_two(case):
    case.names = ("\u00e9nc", "e\u0301nc")
    save_file(case.tensors(case.names), case.path)
    assert set(case.read().updates) == set(case.names)


def write_rank_one(case, keys):
    """Write 1 x 1 matrices under so many keys; by hand, which takes less time than the library."""
    header = {key: entry(4 * number, 4 * number + 4, (1, 1)) for number, key in enumerate(keys)}
    case.path.write_bytes(file_with(header, b"\0\0\x80\x3f" * len(header)))


@pytest.mark.parametrize(("kind", "layers"), [("peft", 50_000), *((kind, 10_000) for kind in FORMATS[1:])])
def test_a_hundred_thousand_tensors_take_seconds(kind, layers, tmp_path):
    case = Case(kind, tmp_path)
    case.names = tuple(f"enc.{layer}.query" for layer in range(layers))
    if kind in SETTINGS:
        case.config.write_text(json.dumps(SETTINGS[kind]).replace('"r": 3', '"r": 1'))
    write_rank_one(case, [key for name in case.names for key in case.keys(name)])
    started = time.process_time()
    assert len(case.read().updates) == layers
    assert time.process_time() - started < layers / 1000  # seconds; what is quadratic takes minutes


def test_thousands_of_wrong_tensors_are_refused_in_seconds_and_in_few_words(case):
    case.names = tuple(f"enc.{layer}.query" for layer in range(4_000))
    write_rank_one(case, [case.keys(f"dec.{layer}.query")[0] for layer in range(4_000)])
    started = time.process_time()
    with pytest.raises(AdapterFormatError) as caught:
        case.read()
    assert time.process_time() - started < 5
    assert "and 3980 more" in str(caught.value)
    assert len(str(caught.value)) < 10_000
