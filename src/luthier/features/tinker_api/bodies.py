"""The bodies of requests of the Tinker SDK. Fields that are not supported are refused, unless they have no effect."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_MAX_METADATA_CHARACTERS: Final = 16_384


def _small(given: dict[str, Any]) -> dict[str, Any]:
    if (num := len(json.dumps(given))) > _MAX_METADATA_CHARACTERS:
        raise ValueError(f"{num:,} characters of JSON; expected: at most {_MAX_METADATA_CHARACTERS:,}")
    return given


_Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
_TextMetadata = Annotated[dict[str, str], AfterValidator(_small)]
_Label = Annotated[str, Field(max_length=255)]
_StopText = Annotated[str, Field(max_length=1000)]
_Name = Annotated[str, Field(min_length=1, max_length=255)]


class StrictBody(BaseModel):
    """The body of a request: unknown fields are refused by name. The SDK adds `type` to each."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    type: str | None = None


class OpenBody(BaseModel):
    """A body of which all fields are optional for the server, such as reports of the SDK."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class FutureObject(BaseModel):
    """A request that has begun: `retrieve_future` has its result."""

    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class SessionRequest(StrictBody):
    """What opens a session."""

    tags: Annotated[list[_Label], Field(max_length=100)] = []
    user_metadata: _Metadata | None = None
    sdk_version: _Label = ""
    project_id: str | None = None
    display_name: _Label | None = None


class SessionIdRequest(StrictBody):
    """A request about a session."""

    session_id: str


class LoraRequest(BaseModel):
    """The adapter of a new client."""

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(ge=1, le=4096)
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerRequest(OpenBody):
    """The optimizer of a new client: `adamw`."""

    type: str = "adamw"


class CreateModelRequest(StrictBody):
    """What makes a training client."""

    session_id: str
    model_seq_id: int = Field(ge=0, lt=2**31)
    base_model: _Name
    user_metadata: _Metadata | None = None
    lora_config: LoraRequest
    optimizer_config: OptimizerRequest = OptimizerRequest()


class ModelIdRequest(StrictBody):
    """A request about a training client."""

    model_id: str


class AdamRequest(BaseModel):
    """The settings of an optimizer step."""

    model_config = ConfigDict(extra="forbid")
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStepRequest(StrictBody):
    """One optimizer step."""

    model_id: str
    seq_id: int | None = None
    adam_params: AdamRequest | None = None
    optimizer_params: dict[str, Any] | None = None


class SaveRequest(StrictBody):
    """What saves a state."""

    model_id: str
    path: str | None = None
    seq_id: int | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: _TextMetadata | None = None


class SaveForSamplerRequest(StrictBody):
    """What saves weights to sample from: under a name, or in memory for a sampling client."""

    model_id: str
    path: str | None = None
    sampling_session_seq_id: int | None = Field(default=None, ge=0, lt=2**31)
    kind: Literal["snapshot", "inflight"] = "snapshot"
    seq_id: int | None = None
    ttl_seconds: int | None = None
    user_metadata: _TextMetadata | None = None


class SaveExternalRequest(StrictBody):
    """What saves an adapter for other programs."""

    model_id: str
    path: str
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: None = None


class LoadRequest(StrictBody):
    """What loads a state into a client, or makes a client of one."""

    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0, lt=2**31)
    base_model: str | None = None
    user_metadata: _Metadata | None = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerRequest | None = None
    weights_access_token: str | None = None


class SamplingSessionRequest(StrictBody):
    """What makes a sampling client."""

    session_id: str
    sampling_session_seq_id: int = Field(ge=0, lt=2**31)
    base_model: str | None = None
    model_path: str | None = None


class SamplingSessionIdRequest(StrictBody):
    """A request about a sampling client."""

    sampling_session_id: str


class ChunkRequest(BaseModel):
    """A part of a prompt."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["encoded_text"] = "encoded_text"
    tokens: list[int]


class PromptRequest(BaseModel):
    """A prompt."""

    model_config = ConfigDict(extra="forbid")
    chunks: list[ChunkRequest]


class SamplingParamsRequest(BaseModel):
    """How answers are sampled."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    max_tokens: int | None = None
    seed: int | None = None
    # Each text is looked for behind each token.
    stop: (
        _StopText
        | Annotated[list[_StopText], Field(max_length=64)]
        | Annotated[list[int], Field(max_length=1024)]
        | None
    ) = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class SampleRequest(StrictBody):
    """What is sampled. Fields that the server does not support are refused unless they have no effect."""

    num_samples: int = Field(default=1, ge=1, le=256)
    prompt: PromptRequest
    sampling_params: SamplingParamsRequest
    base_model: None = None
    model_path: None = None
    sampling_session_id: str
    seq_id: int = Field(ge=0, lt=2**63)
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: None = None
    prompt_alt_tokens_k: Literal[0] = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: Literal[False] | None = None


class RetrieveRequest(StrictBody):
    """Whose result is fetched."""

    request_id: str = Field(min_length=1, max_length=255)
    allow_metadata_only: bool = False


class PathRequest(StrictBody):
    """A path tinker://..."""

    tinker_path: str


class TtlRequest(StrictBody):
    """How long a checkpoint is kept."""

    ttl_seconds: int | None = None
