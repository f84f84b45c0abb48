"""The cause of an end of vLLM, from logs in the shape of vLLM 0.32."""

import signal

import pytest

from luthier.ml.inference.vllm.failures import find_failure

_ENGINE = "(EngineCore pid=41) ERROR 12-03 13:45:01 [core.py:1510] "
_WORKER = "(Worker_TP1 pid=52) ERROR 12-03 13:45:00 [multiproc_executor.py:870] "
_START = "(APIServer pid=40) INFO 12-03 13:44:21 [api_utils.py:286] non-default args: {'model': 'models/mine'}\n"
_TRACEBACK = 'Traceback (most recent call last):\n  File "cli/main.py", line 126, in <module>\n    main()\n'
_WRAPPER = (
    f"{_TRACEBACK}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}\n"
)


def _of_engine(error: str) -> str:
    """A log of an engine that fails: its error, the same without prefix, and that of the server which waited for it."""
    lines = [f"{_ENGINE}EngineCore failed to start.", f"{_ENGINE}Traceback (most recent call last):"]
    return "\n".join([_START, *lines, f"{_ENGINE}{error}", "Process EngineCore:", f"{_TRACEBACK}{error}", _WRAPPER])


def _of_server(error: str) -> str:
    return f"{_START}{_TRACEBACK}{error}\n"


_REFUSED = (
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, {} "
    "[type=value_error, input_value=ArgsKwargs((), {{'model': 'secret/path'}}), input_type=ArgsKwargs]\n"
    "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
)


@pytest.mark.parametrize(
    ("log", "cause", "remedy"),
    [
        pytest.param(
            _of_server(_REFUSED.format("Unknown quantization method: w3a3. Must be one of ['awq', 'fp8'].")),
            "ModelConfig: Unknown quantization method: w3a3. Must be one of ['awq', 'fp8'].",
            "in 16 bits",
            id="unsupported quantisation",
        ),
        pytest.param(
            _of_server(_REFUSED.format("Model architectures ['MineForCausalLM'] are not supported for now.")),
            "ModelConfig: Model architectures ['MineForCausalLM'] are not supported for now.",
            "a version of vLLM that has this architecture",
            id="unsupported architecture",
        ),
        pytest.param(
            _of_engine("ValueError: (1.91 GiB KV cache is needed, which is larger than the available KV cache memory"),
            "ValueError: (1.91 GiB KV cache is needed, which is larger than the available KV cache memory",
            "VLLM_CPU_KVCACHE_SPACE",
            id="cache too small",
        ),
        pytest.param(
            _of_engine("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "a device with more memory",
            id="out of memory",
        ),
        pytest.param(
            _of_server("OSError: [Errno 98] Address already in use"),
            "OSError: [Errno 98] Address already in use",
            "another free port",
            id="port in use",
        ),
        pytest.param(
            _of_engine("ImportError: libnuma.so.1: cannot open shared object file: No such file or directory"),
            "ImportError: libnuma.so.1: cannot open shared object file: No such file or directory",
            "into the environment of vLLM",
            id="missing library",
        ),
        pytest.param(
            "vllm: error while loading shared libraries: libtbb.so.12: cannot open shared object file\n",
            "vllm: error while loading shared libraries: libtbb.so.12: cannot open shared object file",
            "into the environment of vLLM",
            id="missing library of the program",
        ),
        pytest.param(
            f"{_START}{_WORKER}WorkerProc failed to start.\n{_WORKER}RuntimeError: Failed to infer device type\n"
            f"{_ENGINE}Exception: WorkerProc initialization failed due to an exception in a background process.\n"
            f"{_WRAPPER}",
            "RuntimeError: Failed to infer device type",
            "vllm-cpu where it has no GPU",
            id="worker of several",
        ),
        pytest.param(
            "usage: vllm serve [model_tag] [options]\nvllm serve: error: unrecognized arguments: --max-cpu-loras 32\n",
            "vllm serve: error: unrecognized arguments: --max-cpu-loras 32",
            "a version of vLLM that has these arguments",
            id="other version",
        ),
        pytest.param(
            _of_engine("AssertionError"),
            "AssertionError",
            "read its message and output",
            id="one that nobody knows",
        ),
    ],
)
def test_the_engines_own_error_is_found_and_its_remedy_fits(log, cause, remedy):
    failure = find_failure(log, 1)
    assert failure.cause == cause
    assert remedy in failure.remedy
    # Memory is only spoken of where it was short.
    assert ("memory" in failure.remedy) == ("memory" in cause)


def test_an_error_of_the_server_after_that_of_the_engine_is_not_the_cause():
    log = f"{_of_engine('ValueError: the cause')}{_TRACEBACK}KeyError: 'what the server stumbled over'\n"
    assert find_failure(log, 1).cause == "ValueError: the cause"


def test_lines_of_the_log_that_mention_errors_are_no_causes():
    log = (
        "(APIServer pid=40) WARNING 12-03 13:44:21 [system_utils.py:255] limits can cause `OSError: [Errno 24]`\n"
        "lib/dispatcher.py:138: FutureWarning: `torch.distributed.reduce_op` is deprecated\n"
    )
    assert find_failure(log, 0).cause == ""


def test_colours_and_long_lists_are_left_out():
    log = f"\x1b[0;36m(EngineCore pid=41)\x1b[0;0m ValueError: one of {['architecture'] * 500}\n"
    cause = find_failure(log, 1).cause
    assert cause.startswith("ValueError: one of ['arch")
    assert cause.endswith("...")
    assert len(cause) < 500


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (signal.SIGKILL, "where memory is short", "more memory"),
        (signal.SIGILL, "instruction that this processor does not have", "AVX2"),
        (signal.SIGSEGV, "ended by signal 11", "transformers"),
    ],
)
def test_a_signal_is_the_cause_where_the_log_tells_none(number, cause, remedy):
    failure = find_failure(_START, -number)
    assert cause in failure.cause
    assert remedy in failure.remedy


def test_an_error_in_the_log_says_more_than_a_signal():
    assert find_failure(_of_engine("ValueError: the cause"), -signal.SIGABRT).cause == "ValueError: the cause"
