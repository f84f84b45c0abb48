"""When to stop, and when to warn: what the validation loss says about overfitting."""

from __future__ import annotations

from luthier.core.frozen_model import FrozenModel

OVERFITTING_RISES = 2


class EarlyStopping(FrozenModel):
    """The state of the watch over validation loss; part of every checkpoint, so that a resumed run decides alike.

    Attributes:
        patience: validations without a new best before the run stops; 0 never stops (Prechelt, 1998, "Early Stopping,
            but when?", criterion UP).
    """

    patience: int
    best_loss: float | None = None
    best_step: int = 0
    num_since_best: int = 0
    num_rises: int = 0
    last_loss: float | None = None
    last_train_loss: float | None = None
    has_warned: bool = False

    def after(self, step: int, loss: float, train_loss: float) -> EarlyStopping:
        """The state after a validation at `step`; `train_loss` is the mean since the validation before."""
        is_best = self.best_loss is None or loss < self.best_loss
        # A rise while training loss falls: a rise of both is a step that was too large, not overfitting.
        rises = (
            self.last_loss is not None
            and self.last_train_loss is not None
            and loss > self.last_loss
            and train_loss < self.last_train_loss
        )
        num_rises = self.num_rises + 1 if rises else 0
        return self.model_copy(
            update={
                "best_loss": loss if is_best else self.best_loss,
                "best_step": step if is_best else self.best_step,
                "num_since_best": 0 if is_best else self.num_since_best + 1,
                "num_rises": num_rises,
                "last_loss": loss,
                "last_train_loss": train_loss,
                # By the rises before this validation, so that `overfitting` is set for just one validation.
                "has_warned": self.has_warned or self.num_rises >= OVERFITTING_RISES,
            }
        )

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience > 0 and self.num_since_best >= self.patience

    @property
    def overfitting(self) -> str | None:
        """The warning to give now, once a run, or None."""
        if self.has_warned or self.num_rises < OVERFITTING_RISES:
            return None
        return (
            f"validation loss rose {self.num_rises} times in a row (now {self.last_loss:.4f}, best "
            f"{self.best_loss:.4f} at step {self.best_step}) while training loss fell: the model is learning the rows "
            "by heart. The best checkpoint is kept; what to do about it stands at the end of the run and in its report"
        )
