"""VICReg (arXiv:2105.04906): views agree, every dimension varies, no two vary together."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from farreach.learn.collectives import gathered
from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import Encoder, Seen
from farreach_workloads.vision.selfsup.heads import product
from farreach_workloads.vision.selfsup.method import Method, Span, view_major
from farreach_workloads.vision.selfsup.method_configs import VicregConfig
from farreach_workloads.vision.selfsup.simclr import Student

# Added to variances before their root.
EPSILON = 1e-4


def lack_of_variance(x: Tensor) -> Tensor:
    """Mean over dimensions of how far the spread lies below 1, equation 1: (n, d) → ()."""
    return F.relu(1.0 - (x.var(dim=0) + EPSILON).sqrt()).mean()


def covariance(x: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, over d, equation 4: (n, d) → ()."""
    centred = x - x.mean(dim=0)
    columns = centred.t()
    matrix = product(columns, columns) / (len(x) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / x.shape[1]


class Vicreg(Method):
    """See `farreach_workloads.vision.selfsup.method.Method`."""

    def __init__(self, config: PretrainConfig, span: Span) -> None:
        """Make the network; raises ConfigError as `make_encoder` does."""
        assert isinstance(config.method, VicregConfig)
        self._vicreg = config.method
        self.model: Student = Student(config, config.method, config.method.hidden)

    @property
    def encoder(self) -> Encoder:
        """The one that learns."""
        return self.model.encoder

    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The three parts, of the images of all workers."""
        vicreg = self._vicreg
        embedded = model([Seen(view_major(views["large"]))]).chunk(2)
        one, other = (gathered(x) for x in embedded)
        agreement = F.mse_loss(one, other)
        spread = (lack_of_variance(one) + lack_of_variance(other)) / 2
        together = covariance(one) + covariance(other)
        whole = (
            vicreg.invariance * agreement + vicreg.variance * spread + vicreg.covariance * together
        )
        return whole, {
            "learner/invariance": agreement.detach(),
            "learner/variance": spread.detach(),
            "learner/covariance": together.detach(),
        }
