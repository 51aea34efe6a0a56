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
    "Scaling",
    "Total",
    "dequantize",
    "lora",
    "total",
]


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
class Scaling:
    """Numbers of few bits, each times the scale of its block.

    Attributes:
        block: How many numbers along each axis of the leaf, as it is stored, have one scale; None:
            all of them.
        rounds: Whether numbers and scales are made anew of other values.
    """

    block: tuple[int | None, ...]
    rounds: bool = False

    @property
    def made(self) -> int:
        """How many of the parts the way back makes, the first ones; the others are private."""
        # Without rounding the scales stay as they are, and values that do not fit them are refused.
        return 2 if self.rounds else 1

    def told(self, parts: str) -> str:
        """What it is, in words."""
        return f"the product of {parts} by blocks"

    def dtype(self, parts: Sequence[str]) -> str:
        """What the whole is, from what the parts are."""
        # The scales are floats, and the numbers have too few bits for the product.
        return parts[1]

    def lost(self, parts: Sequence[str], dtypes: Sequence[str]) -> str:
        """What is lost of the parts."""
        product = f"the product of {' and '.join(parts)} alone is kept, rounded in {dtypes[1]}"
        if not self.rounds:
            return product
        return f"{product}; back, other values are rounded to {dtypes[0]}, with new scales"

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

    @property
    def beside(self) -> tuple[LogicalPath, ...]:
        """The other parts."""
        return (self.scale,)

    def __str__(self) -> str:
        """The rule as it is written."""
        paths = f"{'/'.join(self.path)!r}, scale={'/'.join(self.scale)!r}"
        rounding = ", rounding='nearest'" if self.rounds else ""
        return f"dequantize({paths}, block={self.block!r}{rounding})"

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
    rounding: Literal["nearest"] | None = None,
) -> Dequantize:
    """A rule: the leaf at ``path`` holds numbers of few bits, to be multiplied by the scales at ``scale``, one for each block.

    So the files of DeepSeek have ``weight`` in ``float8_e4m3fn`` and ``weight_scale_inv``, and files of int8 or int4 have
    scales of rows. The other side has the products, in the dtype of the scales; another dtype there takes a `cast`. They are
    computed in float32 and rounded once, each where it is: nothing is gathered but the scales.

    On the way back a leaf that still is what was computed of ``onto`` gives its numbers and scales back, to the last bit.
    What is another one is an error, unless ``rounding`` says that it may be quantized anew.

    Args:
        path: The logical path of the numbers, of ``float8_*``, ``int8``, ``int4``, in the words of the side that has them.
        scale: That of the scales.
        block: How many numbers have one scale, along the last axes of one layer's leaf: ``(128, 128)``; None for all along
            an axis: ``(1, None)`` is a scale for each row, ``(None, None)`` one in all. An axis of the scales that has one
            element may be left out of them.
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
    verify_paths("dequantize", path=path, scale=scale)
    sizes: list[object] = [*block] if isinstance(block, (list, tuple)) else []
    if not sizes or any(size is not None and (type(size) is not int or size < 1) for size in sizes):
        hint = "such as (128, 128), or (1, None) for a scale for each row"
        expected = "whole numbers of at least 1, or None, for the last axes"
        fault = Mismatch("block", "declaration", expected, shown(block), hint)
        raise not_well_formed("dequantize", fault)
    if rounding not in (None, "nearest"):
        hint = "without it, values that were changed are an error"
        fault = Mismatch("rounding", "declaration", '"nearest"', shown(rounding), hint)
        raise not_well_formed("dequantize", fault)
    return Dequantize(rule_path(path), rule_path(scale), tuple(block), rounding is not None)


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
