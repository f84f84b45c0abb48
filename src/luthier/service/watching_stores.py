"""What a context holds for watching deployed models: traffic, feedback, reviews, alerts, documents of all kinds."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.store.alerts import AlertStore
    from luthier.store.database import Database
    from luthier.store.feedback import FeedbackStore
    from luthier.store.review_items import ReviewStore
    from luthier.store.traffic import TrafficStore
    from luthier.store.watches import WatchStore


class WatchingStores:
    """Stores of what is watched, each made when it is first needed. A part of `Context`, which has the database."""

    if TYPE_CHECKING:

        @cached_property
        def database(self) -> Database:
            """The database of this home."""

    @cached_property
    def traffic(self) -> TrafficStore:
        """The index of what was asked of models of this home and answered."""
        from luthier.store.traffic import TrafficStore

        return TrafficStore(self.database)

    @cached_property
    def watches(self) -> WatchStore:
        """What the projects of this home want watched, and how far that is."""
        from luthier.store.watches import WatchStore

        return WatchStore(self.database)

    @cached_property
    def alerts(self) -> AlertStore:
        """The alerts of this home."""
        from luthier.store.alerts import AlertStore

        return AlertStore(self.database)

    @cached_property
    def feedback(self) -> FeedbackStore:
        """What people say of answers."""
        from luthier.store.feedback import FeedbackStore

        return FeedbackStore(self.database)

    @cached_property
    def review_items(self) -> ReviewStore:
        """The queue in which people look at exchanges before they are trained on."""
        from luthier.store.review_items import ReviewStore

        return ReviewStore(self.database)
