"""neural-tangents' expansions of functions in their first argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazynet.lazy import linearize as core_linearize
from lazynet.lazy import taylor_expand as core_taylor_expand
from lazynet.typing import Params

__all__ = ["linearize", "taylor_expand"]


def linearize(f: Callable[..., Any], params: Params) -> Callable[..., Any]:
    """`f_lin(p, *args, **kwargs)`, the first-order Taylor series of f in its first argument.

    Args:
        f: `f(params, *args, **kwargs)`.
        params: Where to expand.

    Example:
        >>> float(linearize(lambda p, x: x * p**2, 1.0)(3.0, 2.0))
        10.0
    """

    def f_lin(p: Params, *args: Any, **kwargs: Any) -> Any:
        return core_linearize(lambda w, inputs: f(w, *inputs, **kwargs), params)(p, args)

    return f_lin


def taylor_expand(f: Callable[..., Any], params: Params, degree: int) -> Callable[..., Any]:
    """`f_expanded(p, *args, **kwargs)`, the Taylor series of a degree of f in its first argument.

    Args:
        f: `f(params, *args, **kwargs)`.
        params: Where to expand.
        degree: Highest order.

    Example:
        >>> float(taylor_expand(lambda p, x: x * p**2, 1.0, 2)(3.0, 2.0))
        18.0
    """

    def f_expanded(p: Params, *args: Any, **kwargs: Any) -> Any:
        return core_taylor_expand(lambda w, inputs: f(w, *inputs, **kwargs), params, degree)(
            p, args
        )

    return f_expanded
