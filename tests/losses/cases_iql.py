"""The expectile loss: see test_losses.py."""

import rlax

from rljax import losses

from .cases_policy_gradient import each_step
from .loss_case import Case


def expectile(predictions, targets, expectile):
    u = targets - predictions
    return abs(expectile - (u < 0)) * u**2


CASES = {
    "expectile_loss": Case(
        losses.expectile_loss,
        {"predictions": "T:real", "targets": "T:real", "expectile": ":hyper"},
        always=("predictions", "targets", "expectile"),
        stops=False,
        loss=True,
        oracle=each_step(expectile),
        rlax=rlax.expectile_loss,
    ),
}
