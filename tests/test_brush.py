"""The brush codec against the SDK's and the browser's bytes, against a plain writer of records, and against hostile input."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from backend import brush
from backend.brush import MAX_PIXELS, decode, encode
from sam4mllm.errors import MaskCodecError

USUAL = (3, 4, 8, 16)
quick = settings(max_examples=60, deadline=None)

Record = tuple[bool, int, list[int]]
"""Whether it is a run, which size it takes, and its values; those of a run are equal."""


def _stream(count: int, records: Sequence[Record] = (), sizes: Sequence[int] = USUAL, word_bits: int = 8) -> bytes:
    """A stream written bit by bit, as the format says and without regard for speed."""
    bits = f"{count:032b}{word_bits - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    for run, chosen, values in records:
        words = values[:1] if run else values
        bits += f"{run:b}{chosen:02b}{len(values) - 1:0{sizes[chosen]}b}" + "".join(f"{word:08b}" for word in words)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def _benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("brush_benchmark", Path(__file__).parents[1] / "benchmarks" / "brush.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The SDK's bytes


def _on(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width), 255, np.uint8)


# What mask2rle of label_studio_sdk 2.1.2 makes of these masks, in hex.
GOLDEN = {
    "one pixel, on": (_on(1, 1), "00000004391bfc7fe0"),
    "one pixel, off": (_on(1, 1) * 0, "00000004391bfc6000"),
    "two pixels": (np.array([[0, 255]], np.uint8), "00000008391bfc6011ff80"),
    "grey levels": (np.array([[0, 0, 0], [64, 128, 255]], np.uint8), "00000018391bfdb008d023808ffc"),
    "alpha 1 to 4": (np.array([[1, 2, 3, 4]], np.uint8), "00000010391bfc60318146071820"),
    "a hole": (np.array([[255, 255, 255], [255, 0, 255], [255, 255, 255]], np.uint8), "00000024391bfdfff8c02fff80"),
    "8 values, the most of 3 bits": (_on(1, 2), "00000008391bfcffe0"),
    "12 values": (_on(1, 3), "0000000c391bfdbff0"),
    "16 values, the most of 4 bits": (_on(1, 4), "00000010391bfdfff0"),
    "20 values, and a spare byte": (_on(1, 5), "00000014391bfe13ff00"),
    "256 values, the most of 8 bits": (_on(8, 8), "00000100391bfeffff00"),
    "260 values": (_on(5, 13), "00000104391bff0103ff00"),
    "65,536 values, the most of 16 bits": (_on(128, 128), "00010000391bffffffff00"),
    "65,540 values, split": (_on(5, 3277), "00010004391bffffffffe0007fe0"),
    "131,072 values, split evenly": (_on(128, 256) * 0, "00020000391bffffff00ffffe000"),
    "131,076 values, split in three": (_on(3, 10923) * 0, "00020004391bffffff00ffffe01c000c00"),
}

# SHA-256 of what label_studio_sdk 2.1.2 makes of the benchmark's first samples. To print them again, with its wheel unpacked in FOLDER:
# python benchmarks/brush.py --sdk FOLDER --digests
DIGESTS = [
    "ade1bf32c4be15e53c0c7309f2312fd08d2a844a376620f94dc6952cfaf842d5",
    "28fe46ae5fe6c201d3e16b1268638cd3ee9fa5da403f47d380ae7692da8c2116",
    "7784c9c5f8a8ac61870ba3c2bb6fb742f341f09597feff705915d462fc247b37",
    "d4a2d8d5d8a465efac7cfefc4fd27e4e777b1721064c91f72ad0cf701cd200c6",
    "24157747193d6898b2e4ff30b67d9d0187e654ce06e98ace4a2f53de799d94ed",
    "cb04a3f7c6209dc55b7f7572e377a2a1409511ab194cc6db4cb55a9aa2961a5a",
    "7237999f11b1e203a2cc9b2eef8eafa41b7f3c75c06fa42dcdbd0dd01264d28c",
    "7d76dcd17e5e912c3c29ed4269fb0aaf8bade5fd37dbef9c0b87ccdf4c9221ca",
    "ecd9f0a3096bb616339549256388371efc678d96d4902f7a073b3f45735457b7",
    "99469b657684a822cd6065f6fc9dbb8fc990652a4c503a84198027581366a676",
    "57da7bdef2533f0e68f9f6b95ed4f196faee2efa4d75c2680610bb23843d6849",
    "646846d98c8430dc2a17fe3e509c38c74c3af99af75a9e351338576b2586f413",
    "0e5f941b79ffcaa3d5051bb30eb2244771de7429892ee91b7508674baf8eeb81",
    "7befc3adf39d0fe91b85758acf9aa37987e635e2f47495950518c99893426526",
    "4cf3b2edfe5e5ba8ee686b5e026afd123720da370366113c3694901272ddd735",
    "5ed7e61786704297812cbb76d31911caae366315e056a40212cc98a7db1019f3",
    "4e78677b4a13e675391c626eca780698be5f6e34e4789bcb99d2fc0b278519f3",
    "ef20519d76b2beb60ce2a92af9fbc0cfcec805644ae09d4901bdfc0424d3fad9",
    "347500ddc687894b319b36591714fd679e80b61178c1739ae36890a7da9bdcb2",
    "06434eff3cc357ce33d01a69e2264752dc4c0cb40eb6ef3383f70b1a75947233",
    "1f13ca73a051f27ba98634a8c7975dc368c22f4ce4c8bae83bdcb9b70e7806f8",
    "d1d734fc097bf495fd7aa156c5d2b280198e1cfe9487c45192b2e245439bffbb",
    "63a4ca3b99c6466e6cbcae13bc1b8ff708f360f0b765197ef4b07d42eaa6eea9",
    "d725ce00ae2e46989b441adc795cdeec481281f6ea2ff6a3c778b6f552fc2dd7",
    "c6754b709f5438947c8a3a405ca6fc449b2a33907f5b5e365d6667393592b6b6",
    "873c96d5e2804ec186bdce07081cc4a695ac97ce7e582b026bfec1e04b9a958b",
    "64c2b3e371c32fa81edfe24dd33e807d5ed68b5039e32efa8b85839b1648a4b5",
    "d2ce881fa495607bf4d0d38559ab2666d85c95b2a08f0c54980f2950e49e3112",
    "5b8a593870414ec5b0c7e399adc29628fe08f267e528cd4af3ded24f00a7ae5c",
    "1a25b47354c3dad7785738a5027e517d653654dbb9f3d615a9a5fac36857603b",
]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    mask, text = GOLDEN[name]
    sdk = bytes.fromhex(text)
    # The SDK adds a zero byte to a stream that already ends on a whole byte.
    assert bytes(encode(mask)) in (sdk, sdk[:-1])
    assert sdk[len(encode(mask)) :] in (b"", b"\0")
    np.testing.assert_array_equal(decode(sdk, *mask.shape), mask)


def test_spare_byte_is_left_out() -> None:
    assert bytes(encode(_on(1, 5))).hex() == "00000014391bfe13ff"


@pytest.mark.parametrize("index", range(len(DIGESTS)))
def test_golden_digests(index: int) -> None:
    mask = _benchmark().sample(index)
    ours = bytes(encode(mask))
    assert DIGESTS[index] in {hashlib.sha256(rle).hexdigest() for rle in (ours, ours + b"\0")}
    np.testing.assert_array_equal(decode(ours, *mask.shape), mask)


# Masks in


@quick
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_round_trip_alpha(mask: NDArray[np.uint8]) -> None:
    back = decode(encode(mask), *mask.shape)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, mask)


@quick
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_round_trip_bool(mask: NDArray[np.bool_]) -> None:
    rle = encode(mask)
    np.testing.assert_array_equal(decode(rle, *mask.shape), mask * np.uint8(255))
    assert rle == encode(mask * np.uint8(255))
    assert all(type(byte) is int for byte in rle)


@quick
@given(hnp.arrays(np.uint8, (9, 37), elements=st.sampled_from([0, 0, 0, 7, 255])))
def test_encode_is_the_plain_writer(mask: NDArray[np.uint8]) -> None:
    values = np.repeat(mask.ravel(), 4).tolist()
    cuts = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    records: list[Record] = []
    for begin, end in itertools.pairwise(cuts):
        records.append((True, sum(end - begin > most for most in (8, 16, 256)), values[begin:end]))
    assert bytes(encode(mask)) == _stream(len(values), records)


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed", "fortran", "read-only"])
def test_encode_any_memory_layout(view: str) -> None:
    base = np.random.default_rng(3).integers(0, 2, (24, 36)).astype(bool)
    views = {"transposed": base.T, "strided": base[::2, 1::3], "reversed": base[::-1, ::-1], "fortran": np.asfortranarray(base)}
    mask = views.get(view, base)
    if view == "read-only":
        mask.flags.writeable = False
    before = mask.copy()
    np.testing.assert_array_equal(decode(encode(mask), *mask.shape), before * np.uint8(255))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2), np.int64),
        np.zeros(4, bool),
        np.zeros((2, 2, 1), bool),
        np.zeros((0, 4), bool),
        np.zeros((4, 0), np.uint8),
        np.broadcast_to(np.uint8(0), (10_001, 10_000)),
        [[True]],
        None,
    ],
    ids=["float", "int64", "1-D", "3-D", "no rows", "no columns", "too large", "a list", "None"],
)
def test_encode_rejects(mask: Any) -> None:
    with pytest.raises(MaskCodecError) as caught:
        encode(mask)
    assert "\n" not in str(caught.value)


# Streams of others

# Made with @thi.ng/rle-pack 2.1.43, the encoder of Label Studio's editor: hex, height, width and the alpha of the RGBA values put in.
BROWSER = {
    "one pixel": ("00000004391bfc7fe0", 1, 1, [255]),
    "grey levels": ("00000018391bfdb008d023808ffc", 2, 3, [0, 0, 0, 64, 128, 255]),
    "true colour, literals": ("0000000c391bf9b0a141eff0a141e00010203800", 1, 3, [255, 0, 128]),
    "runs that do not end with a pixel": ("00000018391bf8a14283dfe142928f45912038612100e0c0", 2, 3, [255, 30, 30, 7, 7, 6]),
    "sizes 1, 2, 5 and 9": ("00000010380a423050a0f7f850a0f62005c140", 2, 2, [255, 0, 0, 5]),
    "a run over 65,536": ("00014820391bfe4f00fffffffd1f3ffc", 140, 150, [0] * 20 + [255] * 20_980),
}


@pytest.mark.parametrize("name", BROWSER)
def test_streams_of_the_browser(name: str) -> None:
    text, height, width, alpha = BROWSER[name]
    np.testing.assert_array_equal(decode(bytes.fromhex(text), height, width), np.reshape(alpha, (height, width)))


@st.composite
def _records(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Record]]:
    """Sizes of 1 to 16 bits and records with whole pixels in all; runs may follow each other with the same word."""
    sizes = tuple(draw(st.lists(st.integers(1, 16), min_size=4, max_size=4)))
    words = st.sampled_from([0, 1, 127, 128, 255])
    records: list[Record] = []
    for _ in range(draw(st.integers(1, 12))):
        run, chosen = draw(st.booleans()), draw(st.integers(0, 3))
        length = draw(st.integers(1, min(70 if run else 9, 1 << sizes[chosen])))
        records.append((run, chosen, [draw(words)] * length if run else [draw(words) for _ in range(length)]))
    for _ in range(-sum(len(values) for _, _, values in records) % 4):
        records.append((draw(st.booleans()), 0, [draw(words)]))
    return sizes, records


@quick
@given(_records(), st.sampled_from([1, 50, 1 << 20]), st.binary(max_size=2))
def test_any_records(drawn: tuple[tuple[int, ...], list[Record]], batch_bits: int, after: bytes) -> None:
    sizes, records = drawn
    values = [value for _, _, part in records for value in part]
    rle = _stream(len(values), records, sizes) + after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brush, "_BATCH_BITS", batch_bits)
        assert decode(rle, len(values) // 4, 1)[:, 0].tolist() == values[3::4]


def test_a_literal_as_long_as_can_be() -> None:
    colours = np.random.default_rng(5).integers(0, 256, (2, 128, 128, 4))
    rle = _stream(colours.size, [(False, 3, half.ravel().tolist()) for half in colours])
    np.testing.assert_array_equal(decode(rle, 256, 128), colours[..., 3].reshape(256, 128))


def test_masks_of_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = _benchmark().speckle("batches", 150, 200)
    monkeypatch.setattr(brush, "_BATCH_BITS", 1000)
    np.testing.assert_array_equal(decode(encode(mask), 150, 200), mask)


@pytest.mark.parametrize("kind", [list, tuple, bytes, bytearray, memoryview, np.array])
def test_kinds_of_input(kind: Any) -> None:
    rle = bytes(encode(np.array([[0, 255]], np.uint8)))
    given_rle = np.frombuffer(rle, np.uint8) if kind is np.array else kind(rle)
    assert decode(given_rle, np.int64(1), np.int64(2)).tolist() == [[0, 255]]  # type: ignore[arg-type]


# Streams that are wrong

WHOLE = _stream(8, [(True, 0, [255] * 8)])
WRONG: dict[str, tuple[Any, Any, Any, str]] = {
    "no bytes": ([], 1, 2, "do not hold its header"),
    "half a header": (list(WHOLE[:6]), 1, 2, "do not hold its header"),
    "only a header": (_stream(8)[:7], 1, 2, "cut short"),
    "cut in a record": (WHOLE[:-1], 1, 2, "cut short"),
    "cut in a literal": (_stream(8, [(False, 0, [1] * 8)])[:-3], 1, 2, "cut short"),
    "cut between records": (_stream(400, [(True, 2, [255] * 200)]), 10, 10, "cut short"),
    "the count of another image": (WHOLE, 2, 2, "counts 8 values, and its 4 pixels are 16"),
    "the largest count": (_stream(2**32 - 1), 1, 2, "counts 4,294,967,295 values"),
    "words of 16 bits": (_stream(8, [(True, 0, [255] * 8)], word_bits=16), 1, 2, "words of 16 bits"),
    "a run past the end": (_stream(8, [(True, 1, [255] * 9)]), 1, 2, "past its last pixel"),
    "a literal past the end": (_stream(8, [(False, 1, [255] * 9)]), 1, 2, "past its last pixel"),
    "far too long": (WHOLE + bytes(60), 1, 2, "too long"),
    "256": ([*WHOLE[:-1], 256], 1, 2, "whole numbers 0 to 255"),
    "-1": ([-1, *WHOLE[1:]], 1, 2, "whole numbers 0 to 255"),
    "a huge number": ([10**5000, *WHOLE[1:]], 1, 2, "whole numbers 0 to 255"),
    "floats": ([float(byte) for byte in WHOLE], 1, 2, "whole numbers 0 to 255"),
    "None in it": ([None, *WHOLE[1:]], 1, 2, "whole numbers 0 to 255"),
    "lists in it": ([[byte] for byte in WHOLE], 1, 2, "whole numbers 0 to 255"),
    "text": ("0,0,0,8", 1, 2, "not str"),
    "a number": (10**12, 1, 2, "not int"),
    "None": (None, 1, 2, "not NoneType"),
    "a dict": ({"rle": [0]}, 1, 2, "not dict"),
    "an int64 array": (np.array(list(WHOLE)), 1, 2, "not int64"),
    "a 2-D array": (np.zeros((3, 3), np.uint8), 1, 2, r"not uint8 \(3, 3\)"),
    "an endless range": (range(10**15), 1, 2, "too long"),
    "no height": (WHOLE, 0, 2, "above 0"),
    "a negative width": (WHOLE, 1, -2, "above 0"),
    "two negative sides": (WHOLE, -1, -2, "above 0"),
    "a float side": (WHOLE, 1.0, 2, "whole numbers"),
    "a side of text": (WHOLE, 1, "2", "whole numbers"),
    "no side": (WHOLE, None, 2, "whole numbers"),
    "a side of nan": (WHOLE, float("nan"), 2, "whole numbers"),
    "one pixel above the cap": (WHOLE, 1, MAX_PIXELS + 1, "at most 100,000,000 pixels"),
    "absurd sides": (WHOLE, 10**5000, 10**5000, "at most 100,000,000 pixels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_streams(name: str) -> None:
    rle, height, width, message = WRONG[name]
    with pytest.raises(MaskCodecError, match=message) as caught:
        decode(rle, height, width)
    assert "\n" not in str(caught.value)


def _decodes_or_objects(rle: Any, height: int, width: int) -> None:
    try:
        alpha = decode(rle, height, width)
    except MaskCodecError:
        return
    assert alpha.shape == (height, width)
    assert alpha.dtype == np.uint8


@quick
@given(
    st.binary(max_size=80) | st.lists(st.integers(-3, 300) | st.integers(), max_size=20) | st.text(max_size=9),
    st.integers(-2, 40) | st.integers(),
    st.integers(-2, 40) | st.integers(),
)
def test_arbitrary_input(rle: Any, height: int, width: int) -> None:
    _decodes_or_objects(rle, height, width)


@quick
@given(st.binary(max_size=80), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**19 - 1))
def test_arbitrary_sizes_and_records(rest: bytes, height: int, width: int, sizes: int) -> None:
    start = (height * width * 4 << 5 | 7) << 19 | sizes
    _decodes_or_objects(start.to_bytes(7, "big") + rest, height, width)


@quick
@given(st.integers(0, 29), st.integers(0), st.integers(0))
def test_a_bit_turned_over_and_a_cut(index: int, turned: int, cut: int) -> None:
    mask = GOLDEN[sorted(GOLDEN)[index % len(GOLDEN)]][0]
    rle = bytearray(encode(mask))
    rle[turned // 8 % len(rle)] ^= 1 << turned % 8
    _decodes_or_objects(rle[: cut % (len(rle) + 1)], *mask.shape)


def _peak(rle: bytes, height: int, width: int) -> int:
    """Bytes taken at most at one time by a decode that may fail."""
    tracemalloc.start()
    try:
        _decodes_or_objects(rle, height, width)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HOSTILE = {
    "the largest image, then nothing": (_stream(4 * MAX_PIXELS), 10_000, 10_000),
    "the largest image, cut in its first record": (_stream(4 * MAX_PIXELS, [(True, 3, [255] * 65_536)])[:9], 10_000, 10_000),
    "the largest image, one run": (_stream(4 * MAX_PIXELS, [(True, 3, [255] * 65_536)]), 10_000, 10_000),
    "a count of 4 GB": (_stream(2**32 - 4), 1, 2**30 - 1),
    "a count of 4 GB, small sides": (_stream(2**32 - 4), 2, 2),
    "runs past the end": (_stream(8, [(True, 3, [255] * 65_536)] * 3), 1, 2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_counts_take_no_memory(name: str) -> None:
    assert _peak(*HOSTILE[name]) < 1_000_000


def test_memory_of_a_right_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    rle = bytes(encode(_on(2000, 2000)))
    assert _peak(rle, 2000, 2000) < 1.1 * 4_000_000
    monkeypatch.setattr(brush, "_BATCH_BITS", 1000)
    assert _peak(rle, 2000, 2000) < 2.1 * 4_000_000
