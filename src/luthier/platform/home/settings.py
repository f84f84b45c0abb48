"""Where things are: one home folder, shared by the CLI, the Python API and the server."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from luthier.core.aliases import rename_variables
from luthier.core.errors import NotFoundError, RequestError, validation_reason
from luthier.core.ids import is_id

if TYPE_CHECKING:
    from luthier.core.stream import EngineSettings


LOG_NAME: Final = "log.txt"
"""The log in the folder of a run, and in that of an attempt of a job."""
_MAX_SECONDS: Final = 10 * 365.25 * 86400
"""Ten years: calls of the operating system and of torch refuse much longer times."""
_IMPORT_SOURCE: Final = re.compile(
    r"none|hub(:[\w.-]+(/[\w.-]+)?)?|https|(https|s3|gs|az|abfss?)://[^\s/?#@*\[\]{}]+(/[^\s?#*\[\]{}]*)?"
)
_PUSH_TARGET: Final = re.compile(r"hf://[\w.-]+|(?!hf:)[a-z][a-z0-9+.-]*://[^\s?#@]+")
_TEACHER: Final = re.compile(r"https?://[^\s/?#@]+[^\s?#@]*#\S+", re.IGNORECASE)


class Settings(BaseSettings):
    """Settings, each also an environment variable: `home` is LUTHIER_HOME. A variable set to nothing counts as unset.

    Attributes:
        home: The folder where Luthier stores everything.
        database: The URL of a database, such as `postgresql://user:password@host/name`; None for a SQLite file in the
            home.
        artifacts: The URL of a store for files by digest, such as `s3://bucket/folder`; None for a folder in the home.
        checkpoints: Where runs upload their checkpoints while they train, so that another machine can resume them: a
            URL such as `s3://bucket/folder`, or `artifacts` for a folder beside the artifacts; None uploads nothing.
        checkpoint_key: The key that signs uploaded checkpoints, and verifies them before a run is resumed: a private
            key as PEM (Ed25519 or ECDSA), or the path of a file with it. A public key can only verify. None does
            neither.
        checkpoint_allow_unsigned: Whether uploads without a signature are accepted although there is a key.
        upload_wait_seconds: How long the end of a run waits for its uploads; `luthier runs upload` uploads the rest.
        max_file_bytes: The largest file of a project.
        collective_timeout_seconds: How long a process of a run waits for the others, of which the slowest may still be
            reading its rows.
        tracker_wait_seconds: How long the end of a run waits for its experiment trackers; `luthier runs track` delivers
            the rest.
        lease_seconds: How long a silent worker keeps its job, and a silent machine the run that it uploads. All workers
            of a queue should have the same value.
        tokenised_cache_bytes: Disk space for the cache of tokenised rows; 0 disables the cache.
        remote_data_cache_bytes: Disk space for downloaded data files; the least recently used are removed.
        mixtures_cache_bytes: Disk space for files of rows that were mixed from several sources; the least recently used
            are removed.
        data_memory_bytes: Memory for the rows of one audit, repair, split or training; rows beyond it are on disk. 0
            takes a quarter of the available memory.
        data_workers: Processes that audit, repair, split or tokenise a large file. 0 takes one a core, at most 8, and
            one for each GiB of available memory; 1 does it in one process. The results are the same.
        scratch: The folder for rows beyond that memory, which may need several times the size of the file; None for a
            folder in the home.
        result_files_base64: Whether result files of jobs are served base64-encoded, as the hosted service does.
        fork_server: Whether each worker keeps a process with the libraries of training loaded and forks its jobs from
            it. Without it each job loads them again.
        log_format: The format of the log lines that server and workers write to stderr.
        message_language: The language of mails, and of the texts within events that webhooks get: `en` or `de`. Pages
            are in the language of each browser.
        webhooks_may_reach_private: Whether webhooks may be sent to this machine and private networks. It is never
            inferred: behind a proxy every connection is local.
        import_sources: Where pages and API may import rows from, separated by blanks: `hub` or `hub:ORGANISATION`,
            `https` or an address (`https://HOST/FOLDER`), and places of object stores (`s3://BUCKET/FOLDER`,
            `gs://BUCKET`, `az://CONTAINER`); `none` for nowhere. Stores are read with the server's credentials,
            so name each place.
        imports_may_reach_private: Whether rows may be imported from this machine and private networks. It is never
            inferred.
        push_targets: Where admins may push exports to from the pages, separated by blanks: organisations of the hub
            (`hf://ORGANISATION`) and places of stores (`s3://BUCKET/FOLDER`); empty for nowhere. They are reached
            with the server's credentials, so name each place.
        signing_key: The private key (ECDSA or Ed25519, PEM, no password) with which admins sign exports from the pages;
            None for no signatures.
        python_graders: Whether graders may be Python code from a request or a recipe; it runs in a locked-down process.
        stored_completion_days: How many days a stored chat completion or response is kept.
        job_files_days: How many days the files of an ended job are kept in `jobs/` of the home; those that a run or a
            workflow refers to stay.
        max_request_bytes: The largest request to the server that uploads no file.
        allowed_hosts: Names, separated by blanks, that requests may have as their `Host` in addition to those of this
            machine; `*` for any.
        trusted_proxies: Addresses and networks, separated by blanks, of reverse proxies whose `X-Forwarded-For` and
            `X-Forwarded-Proto` are trusted; empty for none.
        unhealthy_restart_seconds: How long the API process may be unhealthy without a break before it is restarted; 0
            never restarts it.
        drain_seconds: How long running requests may still take when the server is stopped, such as long answers.
        max_loaded_models: The most models in memory at once, adapters not counted.
        serving_memory_bytes: Memory for served models and their adapters; 0 takes half of the machine's memory, and
            nine tenths of a GPU's for the models on it.
        serving_queue: The most requests that are running or waiting.
        serving_queue_per_key: The most requests of one key that are running or waiting.
        serving_idle_seconds: After how long without a request all models are unloaded.
        serving_threads: Threads of the engine process; 0 takes as many as other processes leave cores free.
        serving_engine: The engine for models with their own weights: `auto` uses llama.cpp where a GGUF copy exists
            that is proved and faster, `transformers` never does.
        serving_expected_answers: How many answers are usually generated at once. If memory holds only one of a model's
            two engines, the faster one at this number serves it; 0 takes the one that is better for one request and for
            many together.
        serving_quantization: How weights are stored in a GGUF copy: `q8_0` (8 bits), `float16`, or `auto`, which takes
            q8_0 if its log-probabilities and texts are not distinguishable from those of float16.
        max_num_seqs: The most answers that one engine generates at once; 0 leaves it to the engine.
        max_num_batched_tokens: The most tokens of one step of an engine; 0 leaves it to the engine.
        enable_prefix_caching: Whether engines reuse what they have computed for earlier prompts with the same
            beginning; None leaves it to the engine.
        speculative_config: How engines draft tokens, as JSON (`core.stream.SpeculativeConfig`); empty for no drafts.
        share_engine: Whether evaluations and synthesis use the server's engine if it has the model: `exact` if their
            own engine would give the same answers (float32 on the batched path), `always` in every precision, where the
            last bits of a sum may change a word, `never` not at all.
        share_engine_from: The smallest number of answers for which evaluations and synthesis use the server's engine.
        share_engine_wait_seconds: How long evaluations and synthesis accept one answer at a time because of live
            requests without a pause; then they load their own engine. 0 forever.
        default_max_tokens: The most tokens of an answer if the request sets no limit.
        moderation_model: The classifier behind `/v1/moderations` for requests that name no model of this server: a run,
            a tuned model of any project, or the folder of one; empty for none.
        moderation_safe_labels: Labels of the moderation model, separated by commas, that do not flag a text.
        serving_usd_per_million_prompt_tokens: The price of prompt tokens in usage; None for no price.
        serving_usd_per_million_new_tokens: The price of generated tokens in usage; None for no price.
        teacher: A model, besides those of this machine, that pages offer to write questions from passages and to judge:
            `http(s)://host:port/v1#MODEL`; empty for none. Its key is in LUTHIER_TEACHER_API_KEY or OPENAI_API_KEY.
        teacher_usd_per_million_prompt_tokens: The teacher's price of prompt tokens, shown before it is used; None for
            no price.
        teacher_usd_per_million_new_tokens: The teacher's price of generated tokens; None for no price.
        teacher_batch_api: Whether the teacher's server has OpenAI's Batch API, which the pages then offer as well.
        teacher_batch_discount_percent: The discount on batch requests to the teacher.
        smtp: The server for mails: `smtps://user:password@host` (TLS), `smtp+starttls://...`, or `smtp://...` without
            encryption.
        smtp_from: The sender of mails.
        public_url: The address that links to this server begin with, such as `https://models.example.org`; empty for
            that of each project, which its pages ask for once.
        oidc_issuer: The address of an OpenID Connect provider with which people sign in to the pages; empty for none.
        oidc_client_id: The client id of this server at the provider.
        oidc_client_secret: The client secret; None for a public client.
        oidc_scopes: The requested scopes, separated by blanks; `openid` is always included.
        oidc_groups_claim: The claim that lists a person's groups; dots for nested claims, as in `realm_access.roles`.
        oidc_name: The name of the provider on the sign-in page.
        oidc_redirect_url: The address of `/sign-in/oidc/callback` as the provider knows it; empty for the address that
            the browser uses.
    """

    model_config = SettingsConfigDict(
        env_prefix="LUTHIER_", env_ignore_empty=True, frozen=True, extra="ignore", allow_inf_nan=False
    )

    home: Path = Field(default=Path("~/.luthier"))
    database: SecretStr | None = None
    artifacts: SecretStr | None = None
    checkpoints: SecretStr | None = None
    checkpoint_key: SecretStr | None = None
    checkpoint_allow_unsigned: bool = False
    upload_wait_seconds: float = Field(default=600.0, ge=0, le=_MAX_SECONDS)
    max_file_bytes: int = Field(default=8 << 30, gt=0)
    collective_timeout_seconds: float = Field(default=1800.0, gt=0, le=_MAX_SECONDS)
    tracker_wait_seconds: float = Field(default=60.0, ge=0, le=_MAX_SECONDS)
    lease_seconds: float = Field(default=90.0, ge=10.0, le=_MAX_SECONDS)
    tokenised_cache_bytes: int = Field(default=1 << 30, ge=0)
    remote_data_cache_bytes: int = Field(default=100 << 30, ge=0)
    mixtures_cache_bytes: int = Field(default=50 << 30, ge=0)
    data_memory_bytes: int = Field(default=0, ge=0)
    data_workers: int = Field(default=0, ge=0, le=64)
    scratch: Path | None = None
    result_files_base64: bool = False
    fork_server: bool = True
    log_format: Literal["text", "json"] = "text"
    message_language: Literal["en", "de"] = "en"
    webhooks_may_reach_private: bool = False
    import_sources: str = "hub https"
    imports_may_reach_private: bool = False
    push_targets: str = ""
    signing_key: Path | None = None
    python_graders: bool = False
    stored_completion_days: int = Field(default=30, ge=1)
    job_files_days: int = Field(default=30, ge=1)
    max_request_bytes: int = Field(default=4 << 20, gt=0)
    allowed_hosts: str = ""
    trusted_proxies: str = ""
    unhealthy_restart_seconds: float = Field(default=120.0, ge=0, le=_MAX_SECONDS)
    drain_seconds: float = Field(default=10.0, ge=0, le=_MAX_SECONDS)

    max_loaded_models: int = Field(default=2, ge=1)
    serving_memory_bytes: int = Field(default=0, ge=0)
    serving_queue: int = Field(default=64, ge=1)
    serving_queue_per_key: int = Field(default=48, ge=1)
    serving_idle_seconds: float = Field(default=600.0, gt=0, le=_MAX_SECONDS)
    serving_threads: int = Field(default=0, ge=0)
    serving_engine: Literal["auto", "transformers"] = "auto"
    serving_expected_answers: int = Field(default=0, ge=0)
    serving_quantization: Literal["auto", "float16", "q8_0"] = "auto"
    max_num_seqs: int = Field(default=0, ge=0, le=1024)
    max_num_batched_tokens: int = Field(default=0, ge=0)
    enable_prefix_caching: bool | None = None
    speculative_config: str = ""
    share_engine: Literal["exact", "always", "never"] = "exact"
    share_engine_from: int = Field(default=64, ge=1)
    share_engine_wait_seconds: float = Field(default=120.0, ge=0, le=_MAX_SECONDS)
    default_max_tokens: int = Field(default=1024, ge=1)
    moderation_model: str = ""
    moderation_safe_labels: str = "safe"
    serving_usd_per_million_prompt_tokens: float | None = Field(default=None, ge=0)
    serving_usd_per_million_new_tokens: float | None = Field(default=None, ge=0)
    teacher: str = ""
    teacher_usd_per_million_prompt_tokens: float | None = Field(default=None, ge=0)
    teacher_usd_per_million_new_tokens: float | None = Field(default=None, ge=0, validate_default=True)
    teacher_batch_api: bool = False
    teacher_batch_discount_percent: float = Field(default=0.0, ge=0, le=100)
    smtp: SecretStr | None = None
    smtp_from: str = ""
    public_url: str = ""

    @field_validator("public_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        # Without query and fragment: links append a path to it.
        parts = urlsplit(value.strip().rstrip("/"))
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise ValueError(f"{value!r} is not https://HOST or http://HOST:PORT")
        return value.strip().rstrip("/")

    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: SecretStr | None = None
    oidc_scopes: str = "openid profile email"
    oidc_groups_claim: str = "groups"
    oidc_name: str = "single sign-on"
    oidc_redirect_url: str = ""

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for word in value.split():
            try:
                ip_network(word)
            except ValueError as error:
                raise ValueError(f"{word!r} is not an address or a network: {error}") from error
        return value

    @field_validator("import_sources")
    @classmethod
    def _are_sources(cls, value: str) -> str:
        for word in value.split():
            if not _IMPORT_SOURCE.fullmatch(word):
                raise ValueError(
                    f"{word!r} is not hub, hub:ORGANISATION, https, https://HOST, s3://BUCKET, gs://BUCKET, "
                    "az://CONTAINER or none"
                )
        return value

    @field_validator("push_targets")
    @classmethod
    def _are_targets(cls, value: str) -> str:
        # No user, password or query: the targets are shown.
        for word in value.split():
            if not _PUSH_TARGET.fullmatch(word):
                raise ValueError(f"{word!r} is not hf://ORGANISATION, s3://BUCKET/FOLDER or another place of a store")
        return value

    @field_validator("teacher")
    @classmethod
    def _is_teacher(cls, value: str) -> str:
        # No user, password or query: the address is shown, and stored with what the model has written.
        if value and not _TEACHER.fullmatch(value):
            raise ValueError("expected http(s)://host:port/v1#MODEL; its key is in LUTHIER_TEACHER_API_KEY")
        return value

    @field_validator("teacher_usd_per_million_new_tokens")
    @classmethod
    def _has_both_prices(cls, value: float | None, info: ValidationInfo) -> float | None:
        if (value is None) != (info.data.get("teacher_usd_per_million_prompt_tokens") is None):
            raise ValueError("one price without the other: set those of prompt tokens and of new tokens, or neither")
        return value

    @field_validator("max_num_batched_tokens")
    @classmethod
    def _has_a_token_for_each_answer(cls, value: int, info: ValidationInfo) -> int:
        # info.data has the fields above this one: the order of the fields matters here.
        least = max(32, info.data.get("max_num_seqs", 0))
        if 0 < value < least:
            raise ValueError(f"{value}: a step has a token of each answer, so it needs {least} or more")
        return value

    @field_validator("speculative_config")
    @classmethod
    def _is_speculative_config(cls, value: str) -> str:
        if not value:
            return value
        from luthier.core.stream import SpeculativeConfig

        try:
            SpeculativeConfig.model_validate_json(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{value!r}: {f'{place}: ' if place else ''}{validation_reason(first)}") from error
        return value

    @property
    def engine_settings(self) -> EngineSettings:
        """What engines are opened with."""
        from luthier.core.stream import EngineSettings, SpeculativeConfig

        drafts = SpeculativeConfig.model_validate_json(self.speculative_config) if self.speculative_config else None
        return EngineSettings(
            max_num_seqs=self.max_num_seqs or None,
            max_num_batched_tokens=self.max_num_batched_tokens or None,
            enable_prefix_caching=self.enable_prefix_caching,
            speculative_config=drafts,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the names are pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment. Pydantic would also ask for each setting in an `.env` file of no name."""
        return init_settings, env_settings

    @classmethod
    def read(cls, home: Path | None = None) -> Settings:
        """The settings of the environment.

        Args:
            home: Another home than that of the environment.

        Raises:
            RequestError: A variable has a value that is not allowed.
        """
        # In the process's own environment, before pydantic reads it; children inherit the new names.
        rename_variables(os.environ)
        try:
            return cls() if home is None else cls(home=home)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]  # an input may be a password
            name = "_".join(str(part) for part in first["loc"]).upper()
            raise RequestError(
                f"the environment variable LUTHIER_{name}: {validation_reason(first)}",
                expected="a value as docs/server.md describes it",
                do="correct the variable, or unset it",
            ) from error

    @property
    def database_path(self) -> Path:
        """The SQLite file, where no other database is named."""
        return self.home / "luthier.db"

    @property
    def models_folder(self) -> Path:
        """Base models, one folder each."""
        return self.home / "models"

    @property
    def model_leases_folder(self) -> Path:
        """Which models commands at a terminal use now, one file a process."""
        return self.home / "cache" / "model_leases"

    @property
    def runs_folder(self) -> Path:
        """Runs, one folder each: checkpoints, adapter, report."""
        return self.home / "runs"

    @property
    def teacher_batches_folder(self) -> Path:
        """Batches of prompts at the Batch API of teachers, until their answers are stored."""
        return self.home / "teacher_batches"

    @property
    def exports_folder(self) -> Path:
        """Exports that the server was asked for, one folder each."""
        return self.home / "exports"

    @property
    def artifacts_folder(self) -> Path:
        """Files named by their digest."""
        return self.home / "artifacts"

    @property
    def incoming_folder(self) -> Path:
        """Files that are on their way in, or out to artifacts elsewhere."""
        return self.home / "cache" / "incoming"

    @property
    def file_cache_folder(self) -> Path:
        """Files of projects as this machine trains on them, one folder a digest; may be deleted between jobs."""
        return self.home / "cache" / "files"

    @property
    def scratch_folder(self) -> Path:
        """Rows larger than memory, of audits, repairs, splits and trainings; in folders that go with their work."""
        return self.scratch or self.home / "cache" / "scratch"

    @property
    def jobs_folder(self) -> Path:
        """Attempts of queued jobs, one folder each: what was asked, the log, how it ended."""
        return self.home / "jobs"

    @property
    def traffic_folder(self) -> Path:
        """What was asked of models and answered, as far as the projects' policies keep it."""
        return self.home / "traffic"

    @property
    def probes_folder(self) -> Path:
        """What probes measured on this machine."""
        return self.home / "probes"

    @property
    def rates_folder(self) -> Path:
        """How fast this machine, and each other one with this home, multiplies matrices."""
        return self.home / "rates"

    @property
    def tools_folder(self) -> Path:
        """Programs of others that Luthier runs but does not install; may be deleted, and is fetched again."""
        return self.home / "cache" / "tools"

    @property
    def answers_folder(self) -> Path:
        """What was found out about files, one folder a digest; may be deleted at any time, and is found out again."""
        return self.home / "cache" / "answers"

    @property
    def remote_data_folder(self) -> Path:
        """Data files that were downloaded, named by their digest; may be deleted between jobs, and is fetched again.

        Kept below `remote_data_cache_bytes`.
        """
        return self.home / "cache" / "data"

    @property
    def mixtures_folder(self) -> Path:
        """Files of rows that were mixed of several sources; may be deleted between jobs, and is made again.

        Kept below `mixtures_cache_bytes`.
        """
        return self.home / "cache" / "mixtures"

    @property
    def tokenised_folder(self) -> Path:
        """Tokenised rows, named by the digest of what they were made from; may be deleted at any time."""
        return self.home / "cache" / "tokenised"

    @property
    def labels_folder(self) -> Path:
        """Labels of streamed rows, named by the digest of what they were read from; may be deleted at any time."""
        return self.home / "cache" / "labels"

    @property
    def serving_copies_folder(self) -> Path:
        """Models as GGUF files that are served in their place; may be deleted while no server runs."""
        return self.home / "cache" / "serving"

    @property
    def serving_proofs_folder(self) -> Path:
        """What transformers answers with adapters that vLLM serves; may be deleted at any time."""
        return self.home / "cache" / "vllm-proofs"

    @property
    def imports_folder(self) -> Path:
        """Where transformers found its classes (`core/system/libraries.py`); may be deleted at any time."""
        return self.home / "cache" / "imports"

    def run_folder(self, run_id: str) -> Path:
        """The folder of one run.

        Raises:
            NotFoundError: The text is not an id of a run; such a text must never become part of a path.
        """
        if not is_id(run_id, "run"):
            raise NotFoundError(
                f"{run_id!r} is not the id of a run",
                expected="an id such as run-20261125-093000-1f2e3d",
                do="see `luthier runs list`",
            )
        return self.runs_folder / run_id
