"""Covariances of two halves of the features, which couplings change in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lazynet.covariance.layer_rules import concat_rule
from lazynet.covariance.windows import Window

__all__ = ["Halves", "coupling_rule", "joined", "squeeze_rule"]


class Halves(NamedTuple):
    """State of features in two halves, independent of each other in the infinite-width limit.

    Attributes:
        a: Covariances of the first half, averaged over its features: a `state.Kernel`, or
            `general.Positions`.
        b: Those of the second half.
    """

    a: Any
    b: Any

    def replace(self, **changes: Any) -> Halves:
        """A copy with the given fields of both halves changed."""
        return Halves(self.a.replace(**changes), self.b.replace(**changes))

    @property
    def trained(self) -> bool:
        """Whether new weights add to the tangent kernel."""
        return self.a.trained


def joined(k: Any) -> Any:
    """All features as one state, `Sigma = (Sigma_a + Sigma_b) / 2`; any other state as it is.

    Features of two variances are not Gaussian as a whole: only a linear layer may follow.

    Example:
        >>> joined(None) is None
        True
    """
    # Two states of equally many features are branches side by side.
    return concat_rule(k) if isinstance(k, Halves) else k


def coupling_rule(branch: Callable[[Any], Any]) -> Callable[[Any], Halves]:
    """`Sigma_a' = Sigma_b`, `Sigma_b' = Sigma_a + F(Sigma_b)`, F the rule of the branch, and the same for Theta.

    The branch's last weights are its own, so that f(b) is uncorrelated with a and b. Correlations
    between different features, and those of their derivatives, are of the order 1/sqrt(width).

    Raises:
        ValueError: When applied, if the features are not those of a stem, or the branch does not
            end in fresh weights.
    """

    def rule(k: Any) -> Halves:
        a, b = _halves("coupling", k)
        change = branch(b.replace(fresh=False))
        if not (change.fresh and change.gaussian):
            raise ValueError(
                "coupling got a branch that does not end in a fresh Dense or Conv: its sum with the other half has "
                "no closed-form limit; end the branch in Dense or Conv."
            )
        # features of a block of pixels differ in their covariances: their mean adds up all the same
        parts = [a.replace(gaussian=True), change]
        total = type(a).sum_independent(parts, ["", ""]).replace(gaussian=a.gaussian)
        return Halves(b.replace(fresh=False), total)

    return rule


def squeeze_rule(factor: int) -> Callable[[Any], Any]:
    """`Sigma'[p, p'] = 1/s^2 sum_d Sigma[s p + d, s p' + d]` over the pixels d of a block, and the same for Theta.

    It is the mean over the features of a block, whose covariances differ: a linear layer follows.
    """

    def squeezed(k: Any) -> Any:
        window = Window((factor, factor), (factor, factor), "VALID")
        return k.window(window).replace(features=factor**2 * k.features, gaussian=False)

    def rule(k: Any) -> Any:
        if isinstance(k, Halves):
            return Halves(squeezed(k.a), squeezed(k.b))
        if k.gaussian:
            return Halves(*map(squeezed, _halves("squeeze", k)))
        return squeezed(k)

    return rule


def _halves(name: str, k: Any) -> Halves:
    """The two halves of features that are exchangeable, which those after a stem are."""
    if isinstance(k, Halves):
        return k
    if not k.gaussian:
        raise ValueError(
            f"{name} got features of which the halves differ, expected those of a linear layer in the infinite-width "
            "limit: put a Dense or Conv before the first coupling, in the place of inject, or use empirical_ntk."
        )
    half = k.replace(features=k.features // 2, fresh=False)
    return Halves(half, half)
