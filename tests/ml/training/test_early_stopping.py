"""The watch over validation loss."""

from __future__ import annotations

from luthier.ml.training.fit import EarlyStopping


def after(watch: EarlyStopping, *losses: tuple[float, float]) -> EarlyStopping:
    for step, (validation, training) in enumerate(losses, start=1):
        watch = watch.after(step, validation, training)
    return watch


def test_remembers_the_best() -> None:
    watch = after(EarlyStopping(patience=0), (3.0, 3.0), (2.0, 2.0), (2.5, 1.5))
    assert (watch.best_loss, watch.best_step, watch.num_since_best) == (2.0, 2, 1)


def test_stops_when_patience_runs_out_and_not_before() -> None:
    falling = after(EarlyStopping(patience=2), (2.0, 2.0), (2.1, 1.9))
    assert not falling.should_stop
    assert after(falling, (2.2, 1.8)).should_stop


def test_patience_zero_never_stops() -> None:
    assert not after(EarlyStopping(patience=0), *[(2.0 + i, 2.0) for i in range(50)]).should_stop


def test_an_equal_loss_is_no_new_best() -> None:
    assert after(EarlyStopping(patience=1), (2.0, 2.0), (2.0, 1.0)).should_stop


def test_warns_once_when_validation_rises_while_training_falls() -> None:
    watch = after(EarlyStopping(patience=0), (2.0, 2.0), (2.1, 1.9))
    assert watch.overfitting is None
    watch = watch.after(3, 2.2, 1.8)
    message = watch.overfitting
    assert message is not None
    assert "2.0000 at step 1" in message
    assert watch.after(4, 2.3, 1.7).overfitting is None


def test_rising_together_is_not_overfitting() -> None:
    watch = after(EarlyStopping(patience=0), (2.0, 2.0), (2.1, 2.1), (2.2, 2.2), (2.3, 2.3))
    assert watch.overfitting is None
