"""Text in LLVM's language: loops over integers, memory, and arithmetic with vectors of numbers, one for each lane."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

__all__ = ["Code"]

Number = str | int
"""The name of an integer, or its value."""

COMPARISONS = {"gt": "ogt", "ge": "oge", "lt": "olt", "le": "ole", "eq": "oeq", "ne": "une"}
ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
LOGIC = {"and": "and", "or": "or"}


class Code:
    """A module; methods write instructions and return the names of their results."""

    def __init__(self, scalar, lanes):
        self.type = scalar
        self.lanes = lanes
        self.vector = f"<{lanes} x {scalar}>"
        self.bits = f"<{lanes} x i1>"
        self.lines: list[str] = []
        self.names = itertools.count()
        self.block = ""
        self.kinds: dict[str, str] = {}

    def text(self) -> str:
        """The module."""
        suffix = f"v{self.lanes}f{64 if self.type == 'double' else 32}"
        unary = [
            f"declare {self.vector} @llvm.{n}.{suffix}({self.vector})" for n in ("sqrt", "fabs")
        ]
        binary = [
            f"declare {self.vector} @llvm.{n}.{suffix}({self.vector}, {self.vector})"
            for n in ("maximum", "minimum")
        ]
        integer = [f"declare i64 @llvm.{n}.i64(i64, i64)" for n in ("smax", "smin")]
        return "\n".join(
            [*self.lines, *unary, *binary, *integer, "declare i64 @llvm.abs.i64(i64, i1)"]
        )

    def function(
        self, name: str, arguments: str, body: Callable[[], None], *, visible: bool = False
    ) -> None:
        """A function that `body` writes."""
        self.do(f"define {'' if visible else 'internal '}void @{name}({arguments}) {{")
        self.begin(self.label())
        body()
        self.do("ret void")
        self.do("}")

    # names and control flow

    def name(self) -> str:
        """A new name of a value."""
        return f"%v{next(self.names)}"

    def label(self) -> str:
        """A new name of a block."""
        return f"b{next(self.names)}"

    def do(self, line: str) -> None:
        """Writes a line."""
        self.lines.append(line)

    def set(self, instruction: str) -> str:
        """Names the result of an instruction."""
        name = self.name()
        self.do(f"{name} = {instruction}")
        return name

    def begin(self, label: str) -> None:
        """Starts a block."""
        self.do(f"{label}:")
        self.block = label

    @contextlib.contextmanager
    def loop(self, start, stop, by="1") -> Iterator[str]:
        """A loop over integers from `start` to below `stop`."""
        before = self.block
        check, body, after = self.label(), self.label(), self.label()
        index, following = self.name(), self.name()
        self.do(f"br label %{check}")
        self.begin(check)
        # The block that jumps back here has its name only after the body, which may have loops.
        phi = len(self.lines)
        self.do("")
        more = self.set(f"icmp slt i64 {index}, {stop}")
        self.do(f"br i1 {more}, label %{body}, label %{after}")
        self.begin(body)
        yield index
        self.do(f"{following} = add i64 {index}, {by}")
        self.lines[phi] = (
            f"{index} = phi i64 [ {start}, %{before} ], [ {following}, %{self.block} ]"
        )
        self.do(f"br label %{check}")
        self.begin(after)

    def switch(self, number, calls):
        """One of the calls; the last one for all numbers from its own on."""
        labels = [self.label() for _ in calls]
        after = self.label()
        cases = " ".join(f"i64 {k}, label %{label}" for k, label in enumerate(labels[:-1]))
        self.do(f"switch i64 {number}, label %{labels[-1]} [ {cases} ]")
        for label, call in zip(labels, calls, strict=True):
            self.begin(label)
            self.do(call)
            self.do(f"br label %{after}")
        self.begin(after)

    # integers

    def plus(self, a: Number, b: Number) -> Number:
        """`a + b`."""
        return a if str(b) == "0" else self.set(f"add i64 {a}, {b}")

    def minus(self, a: Number, b: Number) -> Number:
        """`a - b`."""
        return self.set(f"sub i64 {a}, {b}")

    def times(self, a: Number, b: Number) -> Number:
        """`a b`."""
        if "0" in (str(a), str(b)):
            return "0"
        return a if str(b) == "1" else self.set(f"mul i64 {a}, {b}")

    def largest(self, a: Number, b: Number) -> Number:
        """`max(a, b)`."""
        return self.set(f"call i64 @llvm.smax.i64(i64 {a}, i64 {b})")

    def smallest(self, a: Number, b: Number) -> Number:
        """`min(a, b)`."""
        return self.set(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def compare(self, how: str, a: Number, b: Number) -> str:
        """The truth of a comparison."""
        return self.set(f"icmp {how} i64 {a}, {b}")

    def choose(self, condition: str, a: Number, b: Number) -> Number:
        """`a` if the condition is true, else `b`."""
        return self.set(f"select i1 {condition}, i64 {a}, i64 {b}")

    def shared(self, n, d, cyclic):
        """Positions along an axis of n that two images share at a displacement."""
        return n if cyclic else self.minus(n, self.set(f"call i64 @llvm.abs.i64(i64 {d}, i1 0)"))

    # memory

    def word(self, pointer: str, index: Number) -> str:
        """The place of an integer."""
        return self.set(f"getelementptr i64, ptr {pointer}, i64 {index}")

    def number(self, pointer: str, index: Number) -> str:
        """An integer in memory."""
        return self.set(f"load i64, ptr {self.word(pointer, index)}")

    def double(self, pointer: str, index: Number) -> str:
        """A number of double precision in memory."""
        at = self.set(f"getelementptr double, ptr {pointer}, i64 {index}")
        return self.set(f"load double, ptr {at}")

    def place(self, pointer: str, index: Number) -> str:
        """The place of a number."""
        return self.set(f"getelementptr {self.type}, ptr {pointer}, i64 {index}")

    def scalar(self, pointer: str, index: Number) -> str:
        """A number in memory."""
        return self.set(f"load {self.type}, ptr {self.place(pointer, index)}")

    def address(self, pointer: str, index: Number, *, wide: bool = False) -> str:
        """The place of a vector, of double precision if it is wide."""
        kind = f"<{self.lanes} x double>" if wide else self.vector
        return self.set(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def other(self, pointer, n):
        """The same place in plane n."""
        return self.address(pointer, "%size") if n else pointer

    def plane(self, register: Number) -> str:
        """The place of a plane."""
        return self.address("%planes", self.times(register, "%size"))

    def load(self, pointer: str) -> str:
        """A vector in memory."""
        return self.set(f"load {self.vector}, ptr {pointer}, align 64")

    def store(self, value: str, pointer: str) -> None:
        """Writes a vector to memory."""
        self.do(f"store {self.vector} {value}, ptr {pointer}, align 64")

    # vectors

    def spread(self, scalar, kind=None):
        """A vector of equal numbers."""
        kind = kind or self.type
        vector = f"<{self.lanes} x {kind}>"
        one = self.set(f"insertelement {vector} poison, {kind} {scalar}, i64 0")
        return self.set(
            f"shufflevector {vector} {one}, {vector} poison, <{self.lanes} x i32> zeroinitializer"
        )

    def sum(self, terms: Sequence[str]) -> str:
        """The sum of vectors."""
        value = terms[0]
        for term in terms[1:]:
            value = self.set(f"fadd contract {self.vector} {value}, {term}")
        return value

    def add_weighted(self, value, pointer):
        """Adds a vector times the weight to one of doubles."""
        wide = f"<{self.lanes} x double>"
        if self.type != "double":
            value = self.set(f"fpext {self.vector} {value} to {wide}")
        value = self.set(f"fmul {wide} {value}, {self.spread('%weight', 'double')}")
        total = self.set(f"load {wide}, ptr {pointer}, align 64")
        total = self.set(f"fadd {wide} {total}, {value}")
        self.do(f"store {wide} {total}, ptr {pointer}, align 64")

    def elementary(self, name, operands):
        """The vector of an operation of `Elementary`."""
        a, b, *_ = [*operands, ""]
        kind = self.kinds.get(a, self.vector)
        if name in COMPARISONS:
            return self.boolean(f"fcmp {COMPARISONS[name]} {self.vector} {a}, {b}")
        if name in LOGIC:
            return self.boolean(f"{LOGIC[name]} {kind} {a}, {b}")
        if name == "not":
            return self.boolean(f"xor {kind} {a}, {self.spread('true', 'i1')}")
        if name in ARITHMETIC:
            return self.set(f"{ARITHMETIC[name]} contract {self.vector} {a}, {b}")
        if name == "select_n":
            condition, no, yes = operands
            return self.set(
                f"select {self.bits} {condition}, {self.vector} {yes}, {self.vector} {no}"
            )
        if name == "neg":
            return self.set(f"fneg {self.vector} {a}")
        if name == "power_of_two":
            return self.power_of_two(a)
        if name == "rsqrt":
            return self.elementary("div", [self.ones(), self.elementary("sqrt", operands)])
        intrinsic = {"sqrt": "sqrt", "abs": "fabs", "max": "maximum", "min": "minimum"}[name]
        suffix = f"v{self.lanes}f{64 if self.type == 'double' else 32}"
        arguments = ", ".join(f"{self.vector} {operand}" for operand in operands)
        return self.set(f"call {self.vector} @llvm.{intrinsic}.{suffix}({arguments})")

    def power_of_two(self, k):
        """`2^k` of integers: their place in the bits of a number is that of the exponent."""
        kind, fraction, bias = ("i64", 52, 1023) if self.type == "double" else ("i32", 23, 127)
        integers = f"<{self.lanes} x {kind}>"
        # Added to a number without fractions, an integer stands in its last bits.
        unit = self.spread(repr(1.5 * 2.0**fraction))
        bits = self.set(f"fadd {self.vector} {k}, {unit}")
        bits = self.set(f"bitcast {self.vector} {bits} to {integers}")
        bits = self.set(f"add {integers} {bits}, {self.spread(bias, kind)}")
        bits = self.set(f"shl {integers} {bits}, {self.spread(fraction, kind)}")
        return self.set(f"bitcast {integers} {bits} to {self.vector}")

    def bounded(self, name, operands):
        """The larger or smaller of a constant and a value, which is kept if it is not a number."""
        constant, value = operands
        passes = self.set(
            f"fcmp {'ogt' if name == 'max' else 'olt'} {self.vector} {constant}, {value}"
        )
        return self.set(
            f"select {self.bits} {passes}, {self.vector} {constant}, {self.vector} {value}"
        )

    def boolean(self, instruction: str) -> str:
        """Names a vector of truths."""
        name = self.set(instruction)
        self.kinds[name] = self.bits
        return name

    def ones(self) -> str:
        """A vector of ones."""
        return self.spread("1.0")
