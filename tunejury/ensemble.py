"""How sure a judge is: the spread of an ensemble that ships beside its head."""

from __future__ import annotations

from torch import Tensor, nn


class RewardEnsemble(nn.Linear):
    """Members that would each give another reward: by how much, as linear functions of the head's features.

    The spread of several fits to resampled data is their standard error (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993); deep ensembles are the same idea (Lakshminarayanan et al., arXiv 1612.01474). The reward itself
    does not pass through here.

    Args:
        input_dim: size of the head's features.
        members: how many.
    """

    def __init__(self, input_dim: int, members: int) -> None:
        super().__init__(input_dim, members)

    def spread(self, features: Tensor) -> Tensor:
        """Features [B, input_dim] -> standard deviation [B] of the members' rewards."""
        return self(features).std(dim=-1)
