"""Rules for leaves that are computed of several of the other side, and what is computed: a fold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from ckpt_schema._layouts.paths import LogicalPath, rule_path
from ckpt_schema._lens.wellformed import not_well_formed, verify_paths
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch

__all__ = [
    "Adapter",
    "Addition",
    "Dequantize",
    "FoldKind",
    "FoldRule",
    "LowRank",
    "Packing",
    "Scaling",
    "Total",
    "dequantize",
    "lora",
    "total",
]

PACKED = {"float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
"""The numbers that may stand in words, and how many bits each has."""


# --- What is computed  ---


@dataclasses.dataclass(frozen=True, slots=True)
class Addition:
    """The sum of leaves that are alike."""

    @property
    def made(self) -> int:
        """How many of the parts the way back makes, the first ones; the others are private."""
        return 1

    def told(self, parts: str) -> str:
        """What it is, in words."""
        return f"the sum of {parts}"

    def dtype(self, parts: Sequence[str]) -> str:
        """What the whole is, from what the parts are."""
        return parts[0]

    def lost(self, parts: Sequence[str], dtypes: Sequence[str]) -> str:
        """What is lost of the parts."""
        # All parts of a sum are alike, so that any of them tells.
        dtype = dtypes[0]
        return f"the sum of {' and '.join(parts)} alone is kept, rounded in {dtype}"

    def cure(self, others: Sequence[str]) -> str:
        """What to do where nobody says what becomes of the parts."""
        rules = " and ".join(f"private({name!r}, 0.0)" for name in others)
        return (
            f"add {rules}: what onto has there stays, else it is 0, and this one has what is left"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """Numbers of few bits, several in a word, the first in its lowest bits.

    Attributes:
        numbers: What they are.
        axis: The axis, of the leaf as it is stored, along which a word holds several.
        count: How many are in a word.
    """

    numbers: str
    axis: int
    count: int

    @property
    def bits(self) -> int:
        """How many bits a number has."""
        return PACKED[self.numbers]

    def whole(self, words: Sequence[int]) -> tuple[int, ...]:
        """The shape of the numbers of an array of words.

        Example:
            >>> Packing("int4", 1, 8).whole((64, 2))
            (64, 16)
        """
        shape = [*words]
        shape[self.axis] *= self.count
        return tuple(shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Scaling:
    """Numbers of few bits, each times the scale of its block.

    Attributes:
        block: How many numbers along each axis of the leaf, as it is stored, have one scale; None:
            all of them.
        rounds: Whether numbers and scales are made anew of other values.
        packing: How the numbers stand in words; None where each is an element.
        zero: What is taken off each number before.
        has_zeros: Whether a third part says that, block by block.
    """

    block: tuple[int | None, ...]
    rounds: bool = False
    packing: Packing | None = None
    zero: int = 0
    has_zeros: bool = False

    @property
    def made(self) -> int:
        """How many of the parts the way back makes, the first ones; the others are private."""
        # Without rounding the scales stay as they are, and values that do not fit them are refused.
        return 2 + self.has_zeros if self.rounds else 1

    def told(self, parts: str) -> str:
        """What it is, in words."""
        what = "computed of" if self.has_zeros else "the product of"
        words = "" if self.packing is None else f", {self.packing.count} numbers a word"
        return f"{what} {parts} by blocks{words}"

    def dtype(self, parts: Sequence[str]) -> str:
        """What the whole is, from what the parts are."""
        # The scales are floats, and the numbers have too few bits for the product. But powers of two
        # alone hold no products: bfloat16 has their exponents, and digits for the numbers.
        return "bfloat16" if parts[1] in EXPONENTS else parts[1]

    def numbers(self, stored: str) -> str:
        """What the numbers are, from what is stored of them."""
        return stored if self.packing is None else self.packing.numbers

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole, from that of what is stored of the numbers."""
        return tuple(shape) if self.packing is None else self.packing.whole(shape)

    def lost(self, parts: Sequence[str], dtypes: Sequence[str]) -> str:
        """What is lost of the parts."""
        what = "what is computed of" if self.has_zeros else "the product of"
        product = f"{what} {' and '.join(parts)} alone is kept, rounded in {self.dtype(dtypes)}"
        if not self.rounds:
            return product
        numbers = self.numbers(dtypes[0])
        return f"{product}; back, other values are rounded to {numbers}, with new scales"

    def cure(self, others: Sequence[str]) -> str:
        """What to do where nobody says what becomes of the parts."""
        return (
            "give onto= the tree that it was computed of, where it is as it was; or say "
            'dequantize(..., rounding="nearest"), which makes numbers and scales anew'
        )


@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """A leaf, and a multiple of the product of two narrow ones.

    Attributes:
        alpha: The factor, times the rank.
        subscripts: Which axes of the narrow leaves are which of the leaf, as ``einsum`` takes them.
    """

    alpha: float
    subscripts: str

    @property
    def made(self) -> int:
        """How many of the parts the way back makes, the first ones; the others are private."""
        return 1

    def told(self, parts: str) -> str:
        """What it is, in words."""
        return f"{parts} merged"

    def dtype(self, parts: Sequence[str]) -> str:
        """What the whole is, from what the parts are."""
        return parts[0]

    def lost(self, parts: Sequence[str], dtypes: Sequence[str]) -> str:
        """What is lost of the parts."""
        base, first, second = parts
        product = f"{self.alpha:g}/rank times {second} times {first}"
        return f"{base} plus {product} alone is kept, rounded in {dtypes[0]}"

    def cure(self, others: Sequence[str]) -> str:
        """What to do where nobody says what becomes of the parts."""
        rules = " and ".join(f"private({name!r}, own)" for name in others)
        return (
            "give onto= the tree that it was merged of, where it is as it was; or add "
            f"{rules}: the adapter stays, and this one has what is left"
        )


EXPONENTS = ("uint8", "float8_e8m0fnu")
"""The dtypes of scales that are powers of two: their exponents, counted from -127."""

FoldKind = Addition | Scaling | LowRank
"""What a fold computes."""


# --- What a user says  ---


@dataclasses.dataclass(frozen=True, slots=True)
class Total:
    """See `total`."""

    whole: LogicalPath
    parts: tuple[LogicalPath, ...]

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"total({'/'.join(self.whole)!r}, {['/'.join(part) for part in self.parts]})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Dequantize:
    """See `dequantize`."""

    path: LogicalPath
    scale: LogicalPath
    block: tuple[int | None, ...]
    rounds: bool = False
    packed: str | None = None
    along: int = -1
    zero: LogicalPath | int = 0

    @property
    def beside(self) -> tuple[LogicalPath, ...]:
        """The other parts."""
        return (self.scale, self.zero) if isinstance(self.zero, tuple) else (self.scale,)

    def __str__(self) -> str:
        """The rule as it is written."""
        words = [f"{'/'.join(self.path)!r}", f"scale={'/'.join(self.scale)!r}"]
        words.append(f"block={self.block!r}")
        if self.packed is not None:
            words.append(f"packed={self.packed!r}")
        if self.along != -1:
            words.append(f"along={self.along}")
        if self.zero:
            zero = self.zero if isinstance(self.zero, int) else "/".join(self.zero)
            words.append(f"zero={zero!r}")
        if self.rounds:
            words.append("rounding='nearest'")
        return f"dequantize({', '.join(words)})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """See `lora`."""

    path: LogicalPath
    a: LogicalPath
    b: LogicalPath
    alpha: float

    @property
    def beside(self) -> tuple[LogicalPath, ...]:
        """The other parts."""
        return (self.a, self.b)

    def __str__(self) -> str:
        """The rule as it is written."""
        a, b = "/".join(self.a), "/".join(self.b)
        return f"lora({'/'.join(self.path)!r}, a={a!r}, b={b!r}, alpha={self.alpha!r})"

    __repr__ = __str__


FoldRule = Total | Dequantize | Adapter
"""A rule for a fold."""


def total(whole: str, parts: Sequence[str]) -> Total:
    """A rule: the leaf at ``whole`` of one side is the sum of several of the other, as the bias of a cell that has two there.

    The sum is rounded, and does not tell its parts. So the way back is an error until it is said what becomes of all
    parts but one: ``private("bias_ih", 0.0)`` takes it from ``onto``, else it is 0, and ``private("bias_ih", own)`` takes it
    from ``onto`` alone. The last part then has what is left. Parts of which the sum is as it was are as they were, whatever
    is said.

    What an optimizer keeps for the parts does not follow: it takes a `reset`.

    Args:
        whole: The logical path of the leaf or node that is the sum, in the words of the side that has it.
        parts: Those of its parts, in the words of theirs; they are alike in dims, dtype and layers.

    Returns:
        The rule.

    Raises:
        SchemaError: A path is no string, or there are not several parts, or one is there twice.

    Example:
        >>> print(total("bias", ["bias_ih", "bias_hh"]))
        total('bias', ['bias_ih', 'bias_hh'])
    """
    # A string is a sequence of strings too: of its letters.
    several: list[str] = list(parts) if isinstance(parts, (list, tuple)) else []
    numbered = {f"parts[{number}]": part for number, part in enumerate(several)}
    verify_paths("total", whole=whole, **numbered)
    if len(several) < 2 or len({*several}) < len(several):
        expected = "the paths of at least two leaves, each once"
        hint = 'such as total("bias", ["bias_ih", "bias_hh"])'
        fault = Mismatch("parts", "declaration", expected, repr(parts), hint)
        raise not_well_formed("total", fault)
    return Total(rule_path(whole), tuple(map(rule_path, several)))


def dequantize(
    path: str,
    *,
    scale: str,
    block: Sequence[int | None] = (128, 128),
    packed: Literal["float4_e2m1fn", "int4", "uint4", "int8", "uint8"] | None = None,
    along: int = -1,
    zero: str | int = 0,
    rounding: Literal["nearest"] | None = None,
) -> Dequantize:
    """A rule: the leaf at ``path`` holds numbers of few bits, to be multiplied by the scales at ``scale``, one for each block.

    So the files of DeepSeek have ``weight`` in ``float8_e4m3fn`` and ``weight_scale_inv``, and files of int8 or int4 have
    scales of rows. The other side has the products, in the dtype of the scales; another dtype there takes a `cast`. They are
    computed in float32 and rounded once, each where it is: nothing is gathered but the scales.

    With ``packed`` the leaf holds words, of each of which several numbers are made: the whole has so many times more elements
    along one axis, ``[out words*8]`` of ``int32[out words]``. The files of gpt-oss have bytes of two ``float4_e2m1fn`` each,
    and scales in ``uint8`` that are exponents of two, counted from -127: their products are ``bfloat16``.

    On the way back a leaf that still is what was computed of ``onto`` gives its numbers and scales back, to the last bit.
    What is another one is an error, unless ``rounding`` says that it may be quantized anew.

    Args:
        path: The logical path of the numbers, of ``float8_*``, ``int8``, ``int4``, in the words of the side that has them.
        scale: That of the scales.
        block: How many numbers have one scale, along the last axes of one layer's leaf: ``(128, 128)``; None for all along
            an axis: ``(1, None)`` is a scale for each row, ``(None, None)`` one in all. An axis of the scales that has one
            element may be left out of them.
        packed: What the numbers in words of integers are, the first in the lowest bits.
        along: The axis along which a word holds several, counted from the end.
        zero: What stands for zero, and is taken off each number before: a number for all, or the logical path of integers,
            one for each block. These are packed as the numbers are, along any axis, its last word filled up; or not.
        rounding: ``"nearest"``: of other values, numbers and scales are made anew. The greatest of a block becomes the
            greatest number of the dtype, and each is rounded to the nearest.

    Returns:
        The rule.

    Raises:
        SchemaError: A path is no string, or another argument is not as said.

    Example:
        >>> print(dequantize("**/weight", scale="**/weight_scale_inv"))
        dequantize('**/weight', scale='**/weight_scale_inv', block=(128, 128))
    """
    paths = {"path": path, "scale": scale}
    verify_paths("dequantize", **(paths if type(zero) is int else {**paths, "zero": zero}))
    sizes: list[object] = [*block] if isinstance(block, (list, tuple)) else []
    faults: list[Mismatch] = []
    if not sizes or any(size is not None and (type(size) is not int or size < 1) for size in sizes):
        hint = "such as (128, 128), or (1, None) for a scale for each row"
        expected = "whole numbers of at least 1, or None, for the last axes"
        faults.append(Mismatch("block", "declaration", expected, shown(block), hint))
    if packed is not None and packed not in PACKED:
        hint = "without it, each element is a number"
        faults.append(
            Mismatch("packed", "declaration", f"one of {', '.join(PACKED)}", shown(packed), hint)
        )
    if type(along) is not int or along >= 0:
        hint = "-1 is the last one, of one layer's leaf"
        faults.append(
            Mismatch("along", "declaration", "an axis counted from the end", shown(along), hint)
        )
    if rounding not in (None, "nearest"):
        hint = "without it, values that were changed are an error"
        faults.append(Mismatch("rounding", "declaration", '"nearest"', shown(rounding), hint))
    if faults:
        raise not_well_formed("dequantize", *faults)
    zeros = zero if isinstance(zero, int) else rule_path(zero)
    rounds = rounding is not None
    return Dequantize(rule_path(path), rule_path(scale), tuple(block), rounds, packed, along, zeros)


def lora(path: str, *, a: str, b: str, alpha: float | None = None) -> Adapter:
    """A rule: the leaf at ``path`` is to be merged with an adapter of low rank: ``w + alpha / rank * b @ a``.

    The other side has the sum. Which axes are contracted, the dims say: the one that ``a`` and ``b`` share and the leaf does
    not have is the rank. Where dims do not tell, ``a`` is ``[rank, in]`` and ``b`` ``[out, rank]`` beside a leaf that is
    ``[out, in]``, as PEFT has them, or ``[in, rank]`` and ``[rank, out]`` beside ``[in, out]``.

    The product is contracted on one device, and the sum rounded once: a restore has the same bits on every mesh.

    A merged leaf does not tell its parts. One that still is what was merged of ``onto`` gives base and adapter back, to the
    last bit. Another one is an error, until rules say what becomes of the adapter: ``private("**/lora_a", own)`` keeps the
    one of ``onto``, and ``private("**/lora_a", 0.0)`` has zeros without it; the base then has what is left.

    Args:
        path: The logical path of the base, in the words of the side that has the adapter.
        a: That of the narrow leaf that is applied first, ``lora_A``.
        b: That of the one that is applied then, ``lora_B``.
        alpha: ``lora_alpha`` of the adapter's config; it has to be said.

    Returns:
        The rule.

    Raises:
        SchemaError: A path is no string, or ``alpha`` no number.

    Example:
        >>> print(lora("**/kernel", a="**/lora_a", b="**/lora_b", alpha=16))
        lora('**/kernel', a='**/lora_a', b='**/lora_b', alpha=16.0)
    """
    verify_paths("lora", path=path, a=a, b=b)
    # Without a default: whoever forgets it would merge an adapter of another strength.
    number: Any = alpha
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not math.isfinite(number) or not number:
        hint = "adapter_config.json of PEFT has it as lora_alpha"
        fault = Mismatch("alpha", "declaration", "a finite number other than 0", shown(alpha), hint)
        raise not_well_formed("lora", fault)
    return Adapter(rule_path(path), rule_path(a), rule_path(b), float(number))
