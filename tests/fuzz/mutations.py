"""Damages files as disks, transfers and ill will do: bytes, lines, and the values of whatever form a file has.

A seeded `random.Random` decides everything, so that a try can be repeated alone.
"""

import io
import json
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

Damaged = tuple[bytes, str]

RAW = ("NaN", "-Infinity", "1e999", "-1e999", "9" * 5000, "[" * 100_000, '{"a":' * 100_000)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, -(2**63), 10**30, -(10**30), 0.5, -0.0, 1e308),
    *("", "x", "a\0b", "../up", "/dev/zero", "\ud800", "9" * 40, "é" * 3000, [], {}, [[]], [None], {"a": 1}, [1, "b"]),
)
_NUMBERS = (b"-1", b"0", b"99999999999999999999999999", b"2147483648", b"9223372036854775807", b"nan", b"1e400", b"1.5")
_WORDS = (
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff" * 7 + b"\x7f",
    b"\0" * 8,
    b"\0\0\0\x80\0\0\0\0",
    b"\1" + b"\0" * 7,
)


def damaged(data: bytes, form: str, random: Random) -> Damaged:
    """Other bytes than `data`, and what was done to them; `form` is a key of `FORMS`, or else only bytes are known."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        inside = FORMS.get(form)
        way = inside if inside and random.random() < 0.7 else _bytes
        for _ in range(20):  # some ways change nothing, or don't know what is damaged already
            try:
                changed, description = way(data, random)
            except Exception as error:
                changed, description = _bytes(data, random)
                description = f"{description} (not {form} any more: {type(error).__name__})"
            if changed != data:
                data = changed
                done.append(description)
                break
    return data, ", then ".join(done)


def _bytes(data: bytes, random: Random) -> Damaged:
    start = random.randrange(len(data) + 1)
    if random.random() < 0.3:  # where headers are
        start = min(start, random.randrange(256))
    length = min(random.choice((1, 1, 2, 4, 8, 64, 512, 4096, len(data))), len(data) - start)
    end = start + length
    here = f"{length} bytes at {start}"
    way = random.randrange(10)
    if way == 0 and data:
        place = min(start, len(data) - 1)
        bit = random.randrange(8)
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], f"bit {bit} of byte {place} flipped"
    if way == 1:
        value = random.choice((0, 255))
        return data[:start] + bytes([value]) * length + data[end:], f"{here} set to {value}"
    if way == 2:
        return data[:start], f"cut at {start}"
    if way == 3:
        return data[:start] + data[end:], f"{here} left out"
    if way == 4:
        times = random.choice((2, 3, 50))
        return data[:start] + data[start:end] * times + data[end:], f"{here} {times} times"
    if way == 5:
        other = random.randrange(len(data) + 1)
        first, second = sorted((start, other))
        size = min(length, second - first, len(data) - second)
        a, b = data[first : first + size], data[second : second + size]
        description = f"{size} bytes at {first} and {second} swapped"
        return data[:first] + b + data[first + size : second] + a + data[second + size :], description
    if way == 6:
        more = random.choice((b"\0", b"\xff", b"\n", random.randbytes(16))) * random.choice((1, 10, 4000))
        return data + more, f"{len(more)} bytes more at the end"
    if way == 7:
        word = random.choice(_WORDS)[: random.choice((2, 4, 8))]
        return data[:start] + word + data[start + len(word) :], f"{word.hex()} at {start}"
    if way == 8:
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
        if not numbers:
            return data, ""
        found, other = random.choice(numbers), random.choice(_NUMBERS)
        description = f"{other.decode()} for {found[0][:20].decode()} at byte {found.start()}"
        return data[: found.start()] + other + data[found.end() :], description
    return data[:start] + random.randbytes(length) + data[end:], f"{here} at random"


def _lines(data: bytes, random: Random) -> Damaged:
    lines = data.splitlines(keepends=True)
    place = random.randrange(len(lines))
    way = random.randrange(5)
    if way == 0:
        lines.insert(place, lines[place])
        return b"".join(lines), f"line {place + 1} twice"
    if way == 1:
        del lines[place]
        return b"".join(lines), f"line {place + 1} left out"
    if way == 2:
        random.shuffle(lines)
        return b"".join(lines), "lines shuffled"
    fields = re.split(rb"([\t,])", lines[place].rstrip(b"\r\n"))
    column = random.randrange(0, len(fields), 2)
    if way == 3:
        del fields[column : column + 2]
        description = f"line {place + 1}: field {column // 2} left out"
    else:
        fields[column] = random.choice((*_NUMBERS, b"", b"\0", b'"', b"A", b"\xff\xfe", fields[0], "é".encode()))
        description = f"line {place + 1}: field {column // 2} is {fields[column][:20]!r}"
    lines[place] = b"".join(fields) + b"\n"
    return b"".join(lines), description


def _json(data: bytes, random: Random) -> Damaged:
    value = json.loads(data)
    holders: list[tuple[dict | list, Any]] = [([value], 0)]
    for holder, key in holders:
        inside = holder[key]
        if isinstance(inside, dict | list):
            holders += [(inside, each) for each in (inside if isinstance(inside, dict) else range(len(inside)))]
    holder, key = random.choice(holders)
    way = random.randrange(6)
    raw = None
    if way == 0 and holder is not holders[0][0]:
        description = f"{key!r} left out"
        del holder[key]
    elif way == 1 and isinstance(holder[key], list):
        description = f"{key!r}: an item twice"
        holder[key] += holder[key][:1]
    elif way == 2 and isinstance(holder[key], dict):
        description = f"{key!r}: an unknown key"
        holder[key]["unknown"] = random.choice(VALUES)
    elif way == 3:
        raw = random.choice(RAW)
        description, holder[key] = f"{key!r} is {raw[:12]}", "@raw@"
    else:
        holder[key] = random.choice(VALUES)
        description = f"{key!r} is {holder[key]!r:.30}"
    text = json.dumps(value if holder is not holders[0][0] else holder[0], indent=2)
    return (text.replace('"@raw@"', raw) if raw else text).encode(), description


def _jsonl(data: bytes, random: Random) -> Damaged:
    if random.random() < 0.3:
        return _lines(data, random)
    lines = data.split(b"\n")
    place = random.randrange(len(lines) - 1)
    changed, description = _json(lines[place], random)
    lines[place] = changed.replace(b"\n", b" ")
    return b"\n".join(lines), f"line {place + 1}: {description}"


def _yaml(data: bytes, random: Random) -> Damaged:
    lines = data.split(b"\n")
    places = [place for place, line in enumerate(lines) if b": " in line]
    place = random.choice(places)
    key = lines[place].partition(b": ")[0]
    value = random.choice((b"", b"null", b"[1, {a: b}]", b"!!python/object:os.system x", b"&a [*a]", b"*x", *_NUMBERS))
    lines[place] = key + b": " + value
    return b"\n".join(lines), f"line {place + 1}: {lines[place][:40]!r}"


def other_array(array: np.ndarray, random: Random) -> tuple[np.ndarray, str]:
    """An array of other values, type or shape."""
    array = array.copy()
    way = random.randrange(9)
    if way < 4 and array.size and array.dtype.kind in "fiu":
        if array.dtype.kind == "f":
            value = random.choice((np.nan, np.inf, -np.inf, -1.0, 0.0, float(np.finfo(array.dtype).max)))
        else:
            value = random.choice((-1, 0, 1, np.iinfo(array.dtype).max, np.iinfo(array.dtype).min))
            value = np.array(value).astype(array.dtype)
        place = random.randrange(array.size)
        if way == 0:
            array[...] = value
            return array, f"all of it {value}"
        array.reshape(-1)[place] = value
        return array, f"item {place} is {value}"
    if way == 4 and array.ndim:
        count = random.randrange(len(array) + 1)
        return array[:count], f"{count} of {len(array)} rows"
    if way == 5 and array.ndim:
        return np.concatenate([array, array[: random.choice((1, len(array)))]]), "more rows"
    if way == 6:
        shape = random.choice(((-1,), (1, *array.shape), (*array.shape, 1), (0,), ()))
        whole = array.reshape(-1)[:1].reshape(()) if shape == () else array[..., :0] if shape == (0,) else array
        return (whole if shape == (0,) else whole.reshape(shape)), f"shape {shape}"
    if way == 7:
        dtype = random.choice(("f8", "f4", "f2", "i1", "i2", "i8", "u8", "?", "c8", "S3", ">f4", ">i8"))
        with np.errstate(all="ignore"):
            return array.astype(dtype), f"as {dtype}"
    return array.T.copy(), "transposed"


def _npy(data: bytes, random: Random) -> Damaged:
    if random.random() < 0.4:
        header, description = _bytes(data[:128], random)
        return header + data[128:], description
    array, description = other_array(np.load(io.BytesIO(data)), random)
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue(), description


def _zip(data: bytes, random: Random) -> Damaged:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(members))
    way = random.randrange(6)
    if way == 0:
        del members[name]
        description = "left out"
    else:
        members[name], description = damaged(members[name], _form(name), random)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue(), f"{name}: {description}"


def _tar(data: bytes, random: Random) -> Damaged:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    place = random.randrange(len(members))
    member, content = members[place]
    name, way = member.name, random.randrange(8)
    if way == 0:
        del members[place]
        description = "left out"
    elif way == 1:
        members.append(members[place])
        description = "again at the end"
    elif way == 2:
        member.name = random.choice(("../up.json", "a/b.npy", ".json", name.upper(), "x" * 200 + ".json"))
        description = f"called {member.name[:20]}"
    elif way == 3:
        member.type = random.choice((tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE))
        description = f"of type {member.type!r}"
    else:
        content, description = damaged(content, _form(name), random)
        members[place] = member, content
        member.size = len(content)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for each, inside in members:
            archive.addfile(each, io.BytesIO(inside))
    return file.getvalue(), f"{name}: {description}"


def _safetensors(data: bytes, random: Random) -> Damaged:
    (length,) = struct.unpack("<Q", data[:8])
    header, description = _json(data[8 : 8 + length], random)
    if '"progress"' in header.decode() and random.random() < 0.5:  # JSON within JSON
        whole = json.loads(data[8 : 8 + length])
        inside, description = _json(whole["__metadata__"]["progress"].encode(), random)
        whole["__metadata__"]["progress"] = inside.decode()
        header = json.dumps(whole).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :], f"header: {description}"


def _png(data: bytes, random: Random) -> Damaged:
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = random.randrange(len(chunks))
    name, content = chunks[place]
    content, description = _bytes(content, random)
    chunks[place] = name, content
    if random.random() < 0.3:
        more = random.choice(((b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20))), (b"eXIf", b"II*\0\xff\xff\xff\xff")))
        chunks.insert(1, more)
        description += f", chunk {more[0].decode()}"
    whole = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return data[:8] + b"".join(whole), f"chunk {name.decode()}: {description}"


def _hdf5(data: bytes, random: Random) -> Damaged:
    with tempfile.NamedTemporaryFile(suffix=".h5") as temporary:
        Path(temporary.name).write_bytes(data)
        with h5py.File(temporary.name, "r") as file:
            arrays = {name: item[()] for name, item in file.items()}
            attributes = dict(file.attrs)
        name, options = random.choice(list(arrays)), {}
        way = random.randrange(10)
        if way == 0:
            del arrays[name]
            description = "left out"
        elif way == 1:
            options, description = {"chunks": True}, "chunked"
        elif way == 2:
            attribute = random.choice(list(attributes))
            attributes[attribute] = random.choice((-1, 2**40, b"x", np.bytes_(b"\xff\xfe"), [1, 2], 0.5))
            name, description = attribute, f"is {attributes[attribute]!r}"
        elif way == 3:
            arrays[name] = random.choice(("text", b"\0\1", [b"a", b"bc"], np.zeros(2, "i4,f8"), h5py.Empty("f4")))
            description = f"is {arrays[name]!r:.20}"
        else:
            arrays[name], description = other_array(np.asarray(arrays[name]), random)
        with h5py.File(temporary.name, "w", libver="earliest") as file:
            file.attrs.update(attributes)
            for each, value in arrays.items():
                chunked = options if each == name and np.ndim(value) and np.size(value) else {}
                file.create_dataset(each, data=value, track_times=False, **chunked)
        return Path(temporary.name).read_bytes(), f"{name}: {description}"


def _form(name: str) -> str:
    return {"npy": "npy", "json": "json", "jsonl": "jsonl"}.get(name.rpartition(".")[2], "bytes")


FORMS: dict[str, Callable[[bytes, Random], Damaged]] = {
    "lines": _lines,
    "json": _json,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "npy": _npy,
    "zip": _zip,
    "tar": _tar,
    "safetensors": _safetensors,
    "png": _png,
    "hdf5": _hdf5,
}
SUFFIXES = {
    **{"json": "json", "jsonl": "jsonl", "csv": "lines", "tsv": "lines", "txt": "lines", "lineidx": "lines"},
    **{"npy": "npy", "npz": "zip", "pth": "zip", "tar": "tar", "safetensors": "safetensors", "png": "png"},
    **{"h5": "hdf5", "yaml": "yaml"},
}


def form_of(path: Path) -> str:
    """The form that a file's name promises."""
    return SUFFIXES.get(path.suffix.removeprefix("."), "bytes")
