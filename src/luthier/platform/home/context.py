"""What every use case is handed: the home, the stores in it, and where progress is shown.

Stores are named by strings and imported on first use: this file is below all of them, and a command loads
those alone that it uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import RequestError
from luthier.core.import_string import import_string
from luthier.core.ports import Progress, SilentProgress
from luthier.core.system.libraries import keep_import_structure
from luthier.platform.home.settings import Settings

if TYPE_CHECKING:
    from luthier.core.stream import Served
    from luthier.features.assessments.store import AssessmentStore
    from luthier.features.batches.store import BatchStore
    from luthier.features.datasets.store import DatasetStore
    from luthier.features.deployments.store import DeploymentStore
    from luthier.features.evals_api.store import EvalStore
    from luthier.features.evaluations.store import EvaluationStore
    from luthier.features.exports.store import ExportStore
    from luthier.features.feedback.store import FeedbackStore, ReviewStore
    from luthier.features.generation.store import GenerationStore
    from luthier.features.human_eval.store import RatingPanelStore
    from luthier.features.inbox.store import InboxStore
    from luthier.features.models.store import TunedModelStore
    from luthier.features.monitoring.alerts_store import AlertStore
    from luthier.features.runs.entries_store import RunEntryStore
    from luthier.features.runs.labels import RunLabelStore
    from luthier.features.runs.store import RunStore
    from luthier.features.serving.checkpoint_permissions import CheckpointPermissionStore
    from luthier.features.serving.inference_client import InferenceClient
    from luthier.features.serving.shared_engines import SharedEngines
    from luthier.features.studies.store import StudyStore
    from luthier.features.tinker_api.sessions import TinkerSessions
    from luthier.features.tinker_api.store import TinkerStore
    from luthier.features.traffic.conversation_store import ConversationStore
    from luthier.features.traffic.late_charges import LateCharges
    from luthier.features.traffic.log import TrafficRecorder
    from luthier.features.traffic.store import TrafficStore
    from luthier.features.traffic.stored_completions import StoredCompletionStore
    from luthier.features.traffic.stored_responses import StoredResponseStore
    from luthier.features.workflows.store import PipelineStore
    from luthier.ml.inference.stored_answers import AnswerFile
    from luthier.platform.audit_log.service import AuditLogStore
    from luthier.platform.auth.invitations_store import InvitationStore
    from luthier.platform.auth.members_store import MemberStore
    from luthier.platform.auth.oidc_store import OidcStore
    from luthier.platform.auth.passkeys_store import PasskeyStore
    from luthier.platform.auth.password_hashing import PasswordThreads
    from luthier.platform.auth.store import AccessStore, UsageStore
    from luthier.platform.db.database import Database
    from luthier.platform.db.monitor_state import WatchStore
    from luthier.platform.files.artifacts import ArtifactStore
    from luthier.platform.files.store import FileStore
    from luthier.platform.files.uploads_store import UploadStore
    from luthier.platform.home.model_leases import ModelLeases
    from luthier.platform.http.idempotency import IdempotencyStore
    from luthier.platform.jobs.events import JobEventStore
    from luthier.platform.jobs.store import JobStore
    from luthier.platform.notifications.store import WebhookStore


_STORES: Final[Mapping[str, str]] = {
    "runs": "luthier.features.runs.store:RunStore",
    "run_entries": "luthier.features.runs.entries_store:RunEntryStore",
    "run_labels": "luthier.features.runs.labels:RunLabelStore",
    "assessments": "luthier.features.assessments.store:AssessmentStore",
    "rating_panels": "luthier.features.human_eval.store:RatingPanelStore",
    "studies": "luthier.features.studies.store:StudyStore",
    "pipelines": "luthier.features.workflows.store:PipelineStore",
    "evaluations": "luthier.features.evaluations.store:EvaluationStore",
    "generations": "luthier.features.generation.store:GenerationStore",
    "job_events": "luthier.platform.jobs.events:JobEventStore",
    "tuned_models": "luthier.features.models.store:TunedModelStore",
    "deployments": "luthier.features.deployments.store:DeploymentStore",
    "usage": "luthier.platform.auth.store:UsageStore",
    "webhooks": "luthier.platform.notifications.store:WebhookStore",
    "checkpoint_permissions": "luthier.features.serving.checkpoint_permissions:CheckpointPermissionStore",
    "access": "luthier.platform.auth.store:AccessStore",
    "members": "luthier.platform.auth.members_store:MemberStore",
    "invitations": "luthier.platform.auth.invitations_store:InvitationStore",
    "inbox": "luthier.features.inbox.store:InboxStore",
    "oidc": "luthier.platform.auth.oidc_store:OidcStore",
    "passkeys": "luthier.platform.auth.passkeys_store:PasskeyStore",
    "datasets": "luthier.features.datasets.store:DatasetStore",
    "exports": "luthier.features.exports.store:ExportStore",
    "audit_log": "luthier.platform.audit_log.service:AuditLogStore",
    "idempotency": "luthier.platform.http.idempotency:IdempotencyStore",
    "traffic": "luthier.features.traffic.store:TrafficStore",
    "stored_completions": "luthier.features.traffic.stored_completions:StoredCompletionStore",
    "conversations": "luthier.features.traffic.conversation_store:ConversationStore",
    "stored_responses": "luthier.features.traffic.stored_responses:StoredResponseStore",
    "evals": "luthier.features.evals_api.store:EvalStore",
    "batches": "luthier.features.batches.store:BatchStore",
    "tinker": "luthier.features.tinker_api.store:TinkerStore",
    "watches": "luthier.platform.db.monitor_state:WatchStore",
    "alerts": "luthier.features.monitoring.alerts_store:AlertStore",
    "feedback": "luthier.features.feedback.store:FeedbackStore",
    "review_items": "luthier.features.feedback.store:ReviewStore",
}
"""Stores that need the database alone, each made on first use."""


class Context:
    """An open home. The database is opened when it is first needed; leaving the `with` block closes it."""

    runs: RunStore
    """The runs of this home."""
    run_entries: RunEntryStore
    """Lists of the runs of this home and of what waits to become one."""
    run_labels: RunLabelStore
    """Names, notes and tags of the runs of this home, and saved views of their list."""
    assessments: AssessmentStore
    """Results of suites, safety checks and calibrations in this home."""
    rating_panels: RatingPanelStore
    """The panels of this home, in which people rate answers."""
    studies: StudyStore
    """The searches of this home."""
    pipelines: PipelineStore
    """Work in stages in this home."""
    evaluations: EvaluationStore
    """The evaluations of this home."""
    generations: GenerationStore
    """What engines wrote in this home, so that the same request is never paid for twice."""
    job_events: JobEventStore
    """Events of the jobs of this home."""
    tuned_models: TunedModelStore
    """The models that jobs of this home have made."""
    deployments: DeploymentStore
    """The names of this home that route to models."""
    usage: UsageStore
    """The usage of models of this home."""
    webhooks: WebhookStore
    """Where projects get messages about jobs that have ended."""
    checkpoint_permissions: CheckpointPermissionStore
    """Which projects may ask models of others."""
    access: AccessStore
    """The projects and keys of this home."""
    members: MemberStore
    """Who signs in to the pages of this home."""
    invitations: InvitationStore
    """Links that make members of projects."""
    inbox: InboxStore
    """Who does what of the inboxes of the projects of this home."""
    oidc: OidcStore
    """Sign-in by an identity provider: groups, identities, and sign-ins in progress."""
    passkeys: PasskeyStore
    """The passkeys of members."""
    datasets: DatasetStore
    """The datasets of the projects of this home."""
    exports: ExportStore
    """What the server of this home has exported, or is to."""
    audit_log: AuditLogStore
    """What was done in this home, and by whom."""
    idempotency: IdempotencyStore
    """The answers to requests that came with an idempotency key."""
    traffic: TrafficStore
    """The index of the traffic of this home."""
    stored_completions: StoredCompletionStore
    """Chat completions that clients asked to store."""
    conversations: ConversationStore
    """Conversations of the Responses API, with their items."""
    stored_responses: StoredResponseStore
    """Answers of the Responses API that are stored."""
    evals: EvalStore
    """The evals of OpenAI's Evals API, with their runs and graded items."""
    batches: BatchStore
    """The batches of requests of this home."""
    tinker: TinkerStore
    """The training clients of the Tinker API, and what they have saved."""
    watches: WatchStore
    """What is monitored for the projects of this home, and its state."""
    alerts: AlertStore
    """The alerts of this home."""
    feedback: FeedbackStore
    """What people say of answers."""
    review_items: ReviewStore
    """The queue in which people look at exchanges before they are trained on."""

    def __init__(self, settings: Settings, progress: Progress, database_patience_seconds: float = 0.0) -> None:
        self.settings, self.progress = settings, progress
        self._patience_seconds = database_patience_seconds
        self.only: Mapping[str, Served] | None = None  # where a server is for these models alone, by name
        self.stored_answers: AnswerFile | None = None  # where a job that evaluates stores answers as they come
        self.owner_project_id: str | None = None  # whose runs are begun here, where they have no job of their own
        self.model_leases: ModelLeases | None = None  # of a command or call that keeps its models from removal
        self.cache_project_id = DEFAULT_PROJECT  # whose stored generations are found and kept here
        # Called before each stage and trial; raises NotAllowedError where who started a job may no longer do it.
        self.check_access: Callable[[], None] = lambda: None

    @classmethod
    def open(
        cls, home: Path | None = None, *, progress: Progress | None = None, database_patience_seconds: float = 0.0
    ) -> Context:
        """Open a home, making the folder where it is missing.

        Args:
            home: The folder; None takes LUTHIER_HOME, or else `~/.luthier`.
            progress: Where progress is shown; None shows nothing.
            database_patience_seconds: How long to try a database again that does not answer.

        Raises:
            RequestError: The home cannot be made or written, or a setting of the environment is wrong.
        """
        settings = Settings.read(home)
        # Absolute, since child processes and later commands may have another current folder.
        place = Path(os.path.abspath(_expanded(settings.home)))  # noqa: PTH100 - resolve() would follow links
        _make_writable(place)
        settings = settings.model_copy(update={"home": place})
        keep_import_structure(settings.imports_folder)
        return cls(settings, progress or SilentProgress(), database_patience_seconds)

    def hold_models(self, command: str) -> None:
        """Keep models that are looked up by name from removal until the context is closed.

        Args:
            command: Who uses them, as an error names it: `luthier eval`, `luthier.evaluate`.
        """
        from luthier.platform.home.model_leases import ModelLeases

        self.model_leases = ModelLeases(self.settings.model_leases_folder, command)

    @contextmanager
    def owned_by(self, project_id: str | None) -> Iterator[None]:
        """Runs that are begun in the block belong to this project; None leaves those of a job to that of the job."""
        before, self.owner_project_id = self.owner_project_id, project_id
        try:
            yield
        finally:
            self.owner_project_id = before

    @contextmanager
    def caching_for(self, project_id: str) -> Iterator[None]:
        """In the block stored generations are those of this project; not for a context that threads share."""
        before, self.cache_project_id = self.cache_project_id, project_id
        try:
            yield
        finally:
            self.cache_project_id = before

    @property
    def home(self) -> Path:
        """The home folder, absolute."""
        return self.settings.home

    @cached_property
    def database(self) -> Database:
        """The database of this home."""
        from luthier.platform.db.database import Database

        named = self.settings.database
        place = self.settings.database_path if named is None else named.get_secret_value()
        return Database.open(place, patience_seconds=self._patience_seconds)

    @cached_property
    def jobs(self) -> JobStore:
        """The queue of this home."""
        made: JobStore = import_string("luthier.platform.jobs.store:JobStore")(
            self.database, self.settings.lease_seconds
        )
        return made

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """The files of this home that are named by their digest."""
        named = self.settings.artifacts
        root = self.settings.artifacts_folder if named is None else named.get_secret_value()
        kind = import_string("luthier.platform.files.artifacts:ArtifactStore")
        made: ArtifactStore = kind(self.database, root, self.settings.incoming_folder)
        return made

    @cached_property
    def files(self) -> FileStore:
        """The files of the projects of this home."""
        made: FileStore = import_string("luthier.platform.files.store:FileStore")(self.database, self.artifacts)
        return made

    @cached_property
    def uploads(self) -> UploadStore:
        """The files that come in parts."""
        made: UploadStore = import_string("luthier.platform.files.uploads_store:UploadStore")(
            self.database, self.artifacts
        )
        return made

    @cached_property
    def inference_client(self) -> InferenceClient:
        """The process that answers with models of this home; it is started by the first ask."""
        # Two threads may come here together: both get the one that was kept first.
        made = import_string("luthier.features.serving.inference_client:InferenceClient")(self.settings)
        kept: InferenceClient = self.__dict__.setdefault("inference_client", made)
        return kept

    @cached_property
    def shared_engines(self) -> SharedEngines:
        """The engines that the server of this home has in memory, for work that is not urgent."""
        made = import_string("luthier.features.serving.shared_engines:SharedEngines")(self)
        kept: SharedEngines = self.__dict__.setdefault("shared_engines", made)
        return kept

    @cached_property
    def tinker_sessions(self) -> TinkerSessions:
        """The sessions of the Tinker API in this process; the first training client starts the process that trains."""
        made = import_string("luthier.features.tinker_api.sessions:TinkerSessions")(self.settings)
        kept: TinkerSessions = self.__dict__.setdefault("tinker_sessions", made)
        return kept

    @cached_property
    def password_threads(self) -> PasswordThreads:
        """The threads of this server that hash passwords."""
        made = import_string("luthier.platform.auth.password_hashing:PasswordThreads")()
        kept: PasswordThreads = self.__dict__.setdefault("password_threads", made)
        return kept

    @cached_property
    def late_charges(self) -> LateCharges:
        """What this process counts as soon as the database answers again."""
        made = import_string("luthier.features.traffic.late_charges:LateCharges")()
        kept: LateCharges = self.__dict__.setdefault("late_charges", made)
        return kept

    @cached_property
    def traffic_recorder(self) -> TrafficRecorder:
        """Records requests and answers of models; its thread begins with the first exchange."""
        made = import_string("luthier.features.traffic.log:TrafficRecorder")(self)
        kept: TrafficRecorder = self.__dict__.setdefault("traffic_recorder", made)
        return kept

    if not TYPE_CHECKING:  # a type checker reads the declarations above, and finds names that are none of them

        def __getattr__(self, name: str) -> Any:
            """A store, made on first use; concurrent threads get the same."""
            if name not in _STORES:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            # setdefault is atomic: of two threads the second one gets the store of the first. Later reads do not come
            # here.
            return self.__dict__.setdefault(name, import_string(_STORES[name])(self.database))

    def close(self) -> None:
        """Write what waits, end the process and threads that work, and close the database, where they were opened."""
        # By __dict__, so that closing opens nothing. The database is last: what ends before may still write.
        if "password_threads" in self.__dict__:
            self.password_threads.close()
        if "traffic_recorder" in self.__dict__:
            self.traffic_recorder.close()
        if "inference_client" in self.__dict__:
            self.inference_client.close()
        if "shared_engines" in self.__dict__:
            self.shared_engines.close()
        if "tinker_sessions" in self.__dict__:
            self.tinker_sessions.close()
        if "late_charges" in self.__dict__:
            self.late_charges.close()
        if "database" in self.__dict__:
            self.database.close()
        if self.model_leases is not None:
            self.model_leases.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _expanded(home: Path) -> Path:
    try:
        return home.expanduser()
    except RuntimeError as error:  # there is no such user, or no HOME and no entry of this user in the system
        raise RequestError(
            f"the home {home}: the folder of that user is not known",
            expected="a folder",
            do="name one with --home or LUTHIER_HOME, or set HOME",
        ) from error


def _make_writable(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Trying is the only sure test: mode bits do not show read-only or full disks.
        probe = home / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(
            f"the home {home} cannot be written: {error.strerror or error}",
            expected="a folder that this user may make and write, with space left",
            do="choose another with --home or LUTHIER_HOME, or correct its permissions",
        ) from error
