"""Check that a JPEG has the tables its scans need, and that frame header and scan headers are consistent.

libjpeg rejects a file otherwise, and then NVIDIA's dali backend fails the whole batch. The rules are those of
libjpeg-turbo: problems for which it only warns are accepted, and so is a broken table that no scan uses.

Most files share a few headers and the standard Huffman tables, so the results of parsing are cached.
"""

import functools
from typing import Final

from fruitstand.errors import ImageRejected

DHT, DAC, SOS, DQT, DRI = 0xC4, 0xCC, 0xDA, 0xDB, 0xDD
PROGRESSIVE = frozenset((0xC2, 0xCA))
MAX_SIDE = 65_500
"""Largest width and height that libjpeg reads, pixels."""

_ARITHMETIC = frozenset((0xC9, 0xCA))
_MAX_TABLE_NUMBER = 3
_MAX_HUFFMAN_TABLES, _MAX_QUANTIZATION_BYTES, _MAX_CONDITIONING_BYTES = 8, 4 * 129, 32 * 2
"""Limits for one segment, which allow each table number once. libjpeg accepts more, but real files have no
more."""
_AC, _QUANTIZATION = 0x10, 0x20
"""Offsets of table numbers: DC, AC and quantisation tables are 0 to 3, 16 to 19 and 32 to 35."""
_STANDARD_TABLES = frozenset((0, 1, _AC, _AC + 1))
"""Huffman tables that libjpeg adds to sequential files without them."""
_MAX_SAMPLING = 4
_MAX_BLOCKS = 10
"""Largest number of blocks of all components in one unit of an interleaved scan."""
_MAX_DC_SYMBOL = 15
_LAST_COEFFICIENT = 63
_MAX_POINT_TRANSFORM = 13
_MAX_CONDITIONING_NUMBER, _FIRST_AC_CONDITIONING = 31, 16

_BROKEN_TABLES: Final = "damaged: broken JPEG tables"
_BROKEN_FRAME: Final = "damaged: broken JPEG frame header"
_BROKEN_SCAN: Final = "damaged: broken JPEG scan header"

Components = tuple[tuple[int, int, int], ...]
"""Identifier, blocks in one interleaved unit, and quantisation table of each component."""


class Coding:
    """The frame and the tables that a file's segments have defined so far.

    Source:
        ITU-T T.81 annex B.2; libjpeg-turbo's jdmarker.c, jdinput.c, jdhuff.c, jdphuff.c, jdsample.c.
    """

    __slots__ = ("_broken", "_components", "_usable", "frame")

    def __init__(self) -> None:
        self.frame = 0  # the frame header's marker
        self._components: Components = ()
        self._usable: set[int] = set()
        self._broken: set[int] = set()

    def define_frame(self, marker: int, segment: memoryview) -> None:
        """Read the frame header, without its marker and length.

        Raises:
            ImageRejected: sampling factors or a length that no decoder accepts.
        """
        self.frame = marker
        self._components = _components(bytes(segment[5:]))

    def define(self, marker: int, segment: memoryview) -> None:
        """Read another segment; a scan header requires all tables it uses to be defined before.

        Raises:
            ImageRejected: libjpeg rejects such a file.
        """
        if marker in (DHT, DQT):
            tables = _huffman_tables if marker == DHT else _quantization_tables
            usable, broken = tables(bytes(segment))
            self._usable |= usable
            if broken or self._broken:
                self._usable -= broken
                self._broken = self._broken - usable | broken
        elif marker == SOS:
            missing = _needed_tables(self.frame, self._components, bytes(segment)) - self._usable
            if self.frame not in PROGRESSIVE:
                missing -= _STANDARD_TABLES - self._broken
            if missing:
                raise ImageRejected(f"{_BROKEN_TABLES}, or none where the picture needs them")
        elif marker == DRI and len(segment) != 2:
            raise ImageRejected(_BROKEN_TABLES)
        elif marker == DAC:
            _check_conditioning(segment)


@functools.lru_cache(maxsize=32)
def _components(header: bytes) -> Components:
    """Parse the components in a frame header, which starts with their number."""
    num_components = header[0] if header else 0
    if not num_components or len(header) != 1 + 3 * num_components:
        raise ImageRejected(_BROKEN_FRAME)
    sampling = [divmod(factors, 16) for factors in header[2::3]]
    widest, highest = (max(factors) for factors in zip(*sampling, strict=True))
    for horizontal, vertical in sampling:
        in_range = 0 < horizontal <= _MAX_SAMPLING and 0 < vertical <= _MAX_SAMPLING
        if not in_range or widest % horizontal or highest % vertical:
            raise ImageRejected("damaged: a JPEG with sampling factors that do not fit together")
    num_blocks = (horizontal * vertical for horizontal, vertical in sampling)
    return tuple(zip(header[1::3], num_blocks, header[3::3], strict=True))


@functools.lru_cache(maxsize=32)
def _needed_tables(frame: int, components: Components, header: bytes) -> frozenset[int]:
    """Numbers of the tables that a scan with this header needs."""
    num_scanned = header[0] if header else 0
    if not 0 < num_scanned <= 4 or len(header) != 4 + 2 * num_scanned:
        raise ImageRejected(_BROKEN_SCAN)
    identifiers, selectors = header[1:-3:2], [divmod(one, 16) for one in header[2:-3:2]]
    first, last, shifts = header[-3:]
    scanned = [_scanned_component(components, one, at_least=n) for n, one in enumerate(identifiers)]
    num_blocks = sum(components[n][1] for n in scanned)
    if len(set(scanned)) < num_scanned or (num_scanned > 1 and num_blocks > _MAX_BLOCKS):
        raise ImageRejected(_BROKEN_SCAN)
    needed = {_QUANTIZATION + components[n][2] for n in scanned}
    is_refinement = False
    if frame in PROGRESSIVE:
        high, low = divmod(shifts, 16)
        is_band = first <= last <= _LAST_COEFFICIENT and num_scanned == 1 if first else last == 0
        if not is_band or high not in (0, low + 1) or low > _MAX_POINT_TRANSFORM:
            raise ImageRejected(_BROKEN_SCAN)
        is_refinement = high > 0
    if frame in _ARITHMETIC:
        return frozenset(needed)
    if frame not in PROGRESSIVE or (not first and not is_refinement):
        needed |= {number for number, _ in selectors}
    if frame not in PROGRESSIVE or first:
        needed |= {_AC + number for _, number in selectors}
    return frozenset(needed)


def _scanned_component(components: Components, identifier: int, *, at_least: int) -> int:
    """Index of a component as libjpeg finds it; the components of a scan follow the frame's order."""
    for n, (own, _, _) in enumerate(components):
        if own == identifier and n >= at_least:
            return n
    raise ImageRejected("damaged: a JPEG scan of a component that its frame does not have")


def _check_conditioning(segment: memoryview) -> None:
    """Check a DAC segment: pairs of class and number, then two bounds in a byte (DC) or one value (AC)."""
    if len(segment) % 2 or len(segment) > _MAX_CONDITIONING_BYTES:
        raise ImageRejected(_BROKEN_TABLES)
    for number, value in zip(segment[::2], segment[1::2], strict=True):
        is_dc = number < _FIRST_AC_CONDITIONING
        if number > _MAX_CONDITIONING_NUMBER or (is_dc and value & 15 > value >> 4):
            raise ImageRejected(_BROKEN_TABLES)


@functools.lru_cache(maxsize=32)
def _quantization_tables(segment: bytes) -> tuple[frozenset[int], frozenset[int]]:
    """Numbers of a segment's usable tables, and an empty set, since quantisation tables cannot be broken."""
    numbers, position = set(), 0
    if len(segment) > _MAX_QUANTIZATION_BYTES:
        raise ImageRejected(_BROKEN_TABLES)
    while position < len(segment):
        precision, number = divmod(segment[position], 16)
        position += 129 if precision else 65
        if number > _MAX_TABLE_NUMBER or position > len(segment):
            raise ImageRejected(_BROKEN_TABLES)
        numbers.add(_QUANTIZATION + number)
    return frozenset(numbers), frozenset()


@functools.lru_cache(maxsize=32)
def _huffman_tables(segment: bytes) -> tuple[frozenset[int], frozenset[int]]:
    """Numbers of a segment's usable tables, and of those that a decoder cannot build.

    Raises:
        ImageRejected: a table has a wrong length or an unknown number, or there are too many tables.
    """
    usable: set[int] = set()
    broken: set[int] = set()
    position = 0
    for _ in range(_MAX_HUFFMAN_TABLES):
        if position == len(segment):
            break
        number, counts = segment[position], segment[position + 1 : position + 17]
        start = position + 17
        position = start + sum(counts)
        symbols = segment[start:position]
        if position > len(segment) or len(symbols) > 256 or number & ~_AC > _MAX_TABLE_NUMBER:
            raise ImageRejected(_BROKEN_TABLES)
        has_symbols = number >= _AC or max(symbols, default=0) <= _MAX_DC_SYMBOL
        is_usable = has_symbols and _is_prefix_code(counts)
        (usable if is_usable else broken).add(number)
        (broken if is_usable else usable).discard(number)
    if position < len(segment):
        raise ImageRejected(_BROKEN_TABLES)
    return frozenset(usable), frozenset(broken)


def _is_prefix_code(counts: bytes) -> bool:
    """Whether the counts per length, 1 to 16 bits, form a prefix code; the all-ones code is reserved."""
    num_free = 1
    for count in counts.rstrip(b"\0"):
        num_free = 2 * num_free - count
        if num_free < 1:
            return False
    return True
