"""What every use case is handed: the home, the stores in it, and where progress is shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from luthier.core.errors import RequestError
from luthier.core.ports import Progress, SilentProgress
from luthier.service.settings import Settings
from luthier.service.watching_stores import WatchingStores

if TYPE_CHECKING:
    from luthier.core.stream import Served
    from luthier.service.late_charges import LateCharges
    from luthier.service.model_server import ModelServer
    from luthier.service.password_hashing import PasswordThreads
    from luthier.service.traffic_log import Keeper
    from luthier.store.access import AccessStore
    from luthier.store.artifacts import ArtifactStore
    from luthier.store.assessments import AssessmentStore
    from luthier.store.audit_log import AuditLogStore
    from luthier.store.checkpoint_permissions import CheckpointPermissionStore
    from luthier.store.database import Database
    from luthier.store.datasets import DatasetStore
    from luthier.store.deployments import DeploymentStore
    from luthier.store.evaluations import EvaluationStore
    from luthier.store.exports import ExportStore
    from luthier.store.files import FileStore
    from luthier.store.generations import GenerationStore
    from luthier.store.idempotency import IdempotencyStore
    from luthier.store.job_events import JobEventStore
    from luthier.store.jobs import JobStore
    from luthier.store.members import MemberStore
    from luthier.store.pipelines import PipelineStore
    from luthier.store.rating_panels import RatingPanelStore
    from luthier.store.run_entries import RunEntryStore
    from luthier.store.runs import RunStore
    from luthier.store.studies import StudyStore
    from luthier.store.tuned_models import TunedModelStore
    from luthier.store.uploads import UploadStore
    from luthier.store.usage import UsageStore
    from luthier.store.webhooks import WebhookStore


class Context(WatchingStores):
    """An open home. The database is opened when it is first needed; leaving the `with` block closes it."""

    def __init__(self, settings: Settings, progress: Progress, database_patience_seconds: float = 0.0) -> None:
        self.settings, self.progress = settings, progress
        self._patience_seconds = database_patience_seconds
        self.only: Mapping[str, Served] | None = None  # where a server is for these models alone, by name

    @classmethod
    def open(
        cls, home: Path | None = None, *, progress: Progress | None = None, database_patience_seconds: float = 0.0
    ) -> Context:
        """Open a home, making the folder where it is missing.

        home: None takes LUTHIER_HOME, or else `~/.luthier`. progress: None shows nothing. database_patience_seconds:
        how long to ask a database again that does not answer.

        Raises RequestError where the home cannot be made or written, or a setting of the environment is wrong.
        """
        settings = Settings.read(home)
        place = Path(os.path.abspath(settings.home.expanduser()))  # noqa: PTH100 - resolve() would follow links
        _make_writable(place)
        settings = settings.model_copy(update={"home": place})
        return cls(settings, progress or SilentProgress(), database_patience_seconds)

    @property
    def home(self) -> Path:
        """The home folder, absolute."""
        return self.settings.home

    @cached_property
    def database(self) -> Database:
        """The database of this home."""
        from luthier.store.database import Database

        named = self.settings.database
        place = self.settings.database_path if named is None else named.get_secret_value()
        return Database.open(place, patience_seconds=self._patience_seconds)

    @cached_property
    def runs(self) -> RunStore:
        """The runs of this home."""
        from luthier.store.runs import RunStore

        return RunStore(self.database)

    @cached_property
    def run_entries(self) -> RunEntryStore:
        """Lists of the runs of this home and of what waits to become one."""
        from luthier.store.run_entries import RunEntryStore

        return RunEntryStore(self.database)

    @cached_property
    def assessments(self) -> AssessmentStore:
        """Results of suites, safety checks and calibrations in this home."""
        from luthier.store.assessments import AssessmentStore

        return AssessmentStore(self.database)

    @cached_property
    def rating_panels(self) -> RatingPanelStore:
        """The panels of this home, in which people rate answers."""
        from luthier.store.rating_panels import RatingPanelStore

        return RatingPanelStore(self.database)

    @cached_property
    def studies(self) -> StudyStore:
        """The searches of this home."""
        from luthier.store.studies import StudyStore

        return StudyStore(self.database)

    @cached_property
    def pipelines(self) -> PipelineStore:
        """Work in stages in this home."""
        from luthier.store.pipelines import PipelineStore

        return PipelineStore(self.database)

    @cached_property
    def evaluations(self) -> EvaluationStore:
        """The evaluations of this home."""
        from luthier.store.evaluations import EvaluationStore

        return EvaluationStore(self.database)

    @cached_property
    def generations(self) -> GenerationStore:
        """What engines wrote in this home, so that the same request is never paid for twice."""
        from luthier.store.generations import GenerationStore

        return GenerationStore(self.database)

    @cached_property
    def jobs(self) -> JobStore:
        """The queue of this home."""
        from luthier.store.jobs import JobStore

        return JobStore(self.database, self.settings.lease_seconds)

    @cached_property
    def job_events(self) -> JobEventStore:
        """What is told of the jobs of this home."""
        from luthier.store.job_events import JobEventStore

        return JobEventStore(self.database)

    @cached_property
    def tuned_models(self) -> TunedModelStore:
        """The models that jobs of this home have made."""
        from luthier.store.tuned_models import TunedModelStore

        return TunedModelStore(self.database)

    @cached_property
    def deployments(self) -> DeploymentStore:
        """The names of this home that route to models."""
        from luthier.store.deployments import DeploymentStore

        return DeploymentStore(self.database)

    @cached_property
    def usage(self) -> UsageStore:
        """What was asked of models of this home."""
        from luthier.store.usage import UsageStore

        return UsageStore(self.database)

    @cached_property
    def webhooks(self) -> WebhookStore:
        """Where projects want to be told that jobs have ended."""
        from luthier.store.webhooks import WebhookStore

        return WebhookStore(self.database)

    @cached_property
    def checkpoint_permissions(self) -> CheckpointPermissionStore:
        """Which projects may ask models of others."""
        from luthier.store.checkpoint_permissions import CheckpointPermissionStore

        return CheckpointPermissionStore(self.database)

    @cached_property
    def access(self) -> AccessStore:
        """The projects and keys of this home."""
        from luthier.store.access import AccessStore

        return AccessStore(self.database)

    @cached_property
    def members(self) -> MemberStore:
        """Who signs in to the pages of this home."""
        from luthier.store.members import MemberStore

        return MemberStore(self.database)

    @cached_property
    def datasets(self) -> DatasetStore:
        """The datasets of the projects of this home."""
        from luthier.store.datasets import DatasetStore

        return DatasetStore(self.database)

    @cached_property
    def exports(self) -> ExportStore:
        """What the server of this home has exported, or is to."""
        from luthier.store.exports import ExportStore

        return ExportStore(self.database)

    @cached_property
    def audit_log(self) -> AuditLogStore:
        """What was done in this home, and by whom."""
        from luthier.store.audit_log import AuditLogStore

        return AuditLogStore(self.database)

    @cached_property
    def idempotency(self) -> IdempotencyStore:
        """The answers to requests that came with an idempotency key."""
        from luthier.store.idempotency import IdempotencyStore

        return IdempotencyStore(self.database)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """The files of this home that are named by their digest."""
        from luthier.store.artifacts import ArtifactStore

        named = self.settings.artifacts
        root = self.settings.artifacts_folder if named is None else named.get_secret_value()
        return ArtifactStore(self.database, root, self.settings.incoming_folder)

    @cached_property
    def files(self) -> FileStore:
        """The files of the projects of this home."""
        from luthier.store.files import FileStore

        return FileStore(self.database, self.artifacts)

    @cached_property
    def uploads(self) -> UploadStore:
        """The files that come in parts."""
        from luthier.store.uploads import UploadStore

        return UploadStore(self.database, self.artifacts)

    @cached_property
    def model_server(self) -> ModelServer:
        """The process that answers with models of this home; it is started by the first ask."""
        from luthier.service.model_server import ModelServer

        # Two threads may come here at once: both get the one that was kept first.
        kept: ModelServer = self.__dict__.setdefault("model_server", ModelServer(self.settings))
        return kept

    @cached_property
    def password_threads(self) -> PasswordThreads:
        """The threads of this server that hash passwords."""
        from luthier.service.password_hashing import PasswordThreads

        kept: PasswordThreads = self.__dict__.setdefault("password_threads", PasswordThreads())
        return kept

    @cached_property
    def late_charges(self) -> LateCharges:
        """What this process counts as soon as the database answers again."""
        from luthier.service.late_charges import LateCharges

        kept: LateCharges = self.__dict__.setdefault("late_charges", LateCharges())
        return kept

    @cached_property
    def traffic_keeper(self) -> Keeper:
        """Keeps what is asked of models and answered; its thread begins with the first exchange."""
        from luthier.service.traffic_log import Keeper

        kept: Keeper = self.__dict__.setdefault("traffic_keeper", Keeper(self))
        return kept

    def close(self) -> None:
        """Write what waits, end the process and threads that work, and close the database, where they were opened."""
        if "password_threads" in self.__dict__:
            self.password_threads.close()
        if "traffic_keeper" in self.__dict__:
            self.traffic_keeper.close()
        if "model_server" in self.__dict__:
            self.model_server.close()
        if "late_charges" in self.__dict__:
            self.late_charges.close()
        if "database" in self.__dict__:
            self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_writable(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(
            f"the home {home} cannot be written: {error.strerror or error}",
            expected="a folder that this user may make and write, with space left",
            do="choose another with --home or LUTHIER_HOME, or correct its permissions",
        ) from error
