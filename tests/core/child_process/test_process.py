"""A child process as its parent sees it: results, events, errors of every kind, limits, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from luthier.core.child_process.process import ChildEndedError, ChildProcess, run_child, wait_any
from luthier.core.errors import DataError, LuthierError, error_from

HERE = "tests.core.child_process.children"


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_result_comes_after_its_events_and_what_is_printed_is_no_part_of_it() -> None:
    events: list[object] = []
    assert run_child(f"{HERE}:double", 3, on_event=events.append) == 6
    assert events == [{"at": 0}, {"at": 1}, {"at": 2}]


def test_documents_and_results_may_be_larger_than_any_buffer() -> None:
    text = "é" * 3_000_000
    with ChildProcess(f"{HERE}:answer", None) as child:
        assert child.request([text])[1] == [text]


def test_an_error_of_ours_is_the_same_class_with_the_same_words() -> None:
    with pytest.raises(DataError) as caught:
        run_child(f"{HERE}:fail", "rows")
    assert "a.jsonl:3" in caught.value.came
    assert (caught.value.expected, caught.value.do) == ("text", "fill them")


def test_a_full_disk_is_the_oserror_that_it_was_in_the_child() -> None:
    with pytest.raises(OSError, match="No space left on device: '/somewhere'") as caught:
        run_child(f"{HERE}:fail", "full")
    assert caught.value.errno == 28


def test_a_full_disk_below_an_error_without_words_is_an_oserror_too() -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        run_child(f"{HERE}:fail", "full below")
    assert caught.value.errno == 28


def test_any_other_error_ends_the_child_and_its_words_are_quoted() -> None:
    with pytest.raises(ChildEndedError, match="Converting ended with exit code 1") as caught:
        run_child(f"{HERE}:fail", "library", title="Converting")
    assert caught.value.log_lines[-1] == "ValueError: a shape of no use"
    assert type(error_from(caught.value.as_json())).__name__ == "WorkError"


def test_a_child_that_dies_is_named_by_its_signal() -> None:
    with pytest.raises(ChildEndedError, match="exit code -9") as caught:
        run_child(f"{HERE}:fail", "killed")
    assert (caught.value.how, caught.value.is_late, caught.value.is_killed) == ("by SIGKILL", False, True)


def test_a_child_that_is_late_is_killed() -> None:
    with ChildProcess(f"{HERE}:fail", "late", title="Waiting") as child:
        with pytest.raises(ChildEndedError, match="Waiting was not done in time") as caught:
            child.result(timeout_seconds=0.2)
        assert caught.value.is_late
        # It was killed because its time was up: memory has not run out.
        assert not caught.value.is_killed
        assert child.returncode == -9


def test_a_result_that_came_in_time_is_not_lost_to_a_deadline_that_passes_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent was busy with an event when both came, the result and the end of its time."""
    go = tmp_path / "go"
    with ChildProcess(f"{HERE}:after_file", str(go), title="Waiting") as child:

        def busy(_: object) -> None:
            go.touch()
            assert wait_until(lambda: child.returncode == 0), "its result lies in the channel"
            later = time.monotonic() + 1000
            monkeypatch.setattr("luthier.core.child_process.process.time.monotonic", lambda: later)

        assert child.result(timeout_seconds=600, on_event=busy) == "done"


def test_a_memory_limit_is_a_memory_error_and_a_warm_child_ends_after_it() -> None:
    with ChildProcess(f"{HERE}:answer", None, memory_bytes=1 << 30) as child:
        pid, _ = child.request(1)
        with pytest.raises(MemoryError, match="more than 1 GiB"):
            child.request("memory")
        assert wait_until(lambda: child.returncode == 0)
        assert pid == child.pid


def test_a_warm_child_answers_many_requests_and_errors_do_not_end_it() -> None:
    with ChildProcess(f"{HERE}:answer", None) as child:
        answers = [child.request(number) for number in range(5)]
        with pytest.raises(DataError, match="wrong"):
            child.request("again")
        answers.append(child.request(5))
    assert answers == [[child.pid, number] for number in range(6)]
    assert child.returncode == 0


def test_threads_take_turns_at_one_child() -> None:
    answers: dict[int, object] = {}
    with ChildProcess(f"{HERE}:answer", None) as child:

        def ask(number: int) -> None:
            answers[number] = child.request(number)[1]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {number: number for number in range(16)}


def test_a_child_that_has_grown_large_says_so_with_its_last_answer() -> None:
    with ChildProcess(f"{HERE}:answer", 1) as child:
        child.send("again")
        message = child.receive(30)[0]
        assert message["is_last"]
        assert message["error"]["came"] == "wrong"
        assert wait_until(lambda: child.returncode == 0)


def test_messages_of_several_children_come_as_they_are_sent() -> None:
    with ChildProcess(f"{HERE}:answer", None) as first, ChildProcess(f"{HERE}:answer", None) as second:
        second.send(2)
        assert wait_any([first, second], 30) == [second]
        assert second.receive(0) == [{"result": [second.pid, 2]}]
        first.kill()
        assert wait_any([first, second], 30) == [first]
        assert (first.receive(0), first.has_hung_up) == ([], True)
        assert wait_any([second], 0) == []


def test_a_kill_takes_what_the_child_has_started_with_it() -> None:
    with ChildProcess(f"{HERE}:linger", None) as child:
        own, grandchild = child.receive(30)[0]["event"]
        child.kill()
        assert child.wait() == -9
        assert wait_until(lambda: not lives(grandchild) and not lives(own))


@pytest.mark.parametrize(("how", "code"), [("plain", -15), ("stubborn", -9)])
def test_a_stop_is_a_signal_and_then_a_kill(how: str, code: int) -> None:
    with ChildProcess(f"{HERE}:linger", how) as child:
        _, grandchild = child.receive(30)[0]["event"]
        assert child.stop(10.0 if how == "plain" else 0.2) == code
        psutil.Process(grandchild).kill() if lives(grandchild) else None


def test_an_error_in_the_block_kills_the_child() -> None:
    with pytest.raises(KeyboardInterrupt), ChildProcess(f"{HERE}:fail", "late") as child:
        raise KeyboardInterrupt
    assert child.returncode == -9


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    program = f"""
import os, sys
from luthier.core.child_process.process import ChildProcess
child = ChildProcess({HERE + ":linger"!r}, None)
print(child.receive()[0]["event"][0], flush=True)
child.receive()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert wait_until(lambda: not lives(child))


def test_the_environment_is_what_is_given_and_python_s_path_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    names = ["PYTHONPATH", "COLOUR"]
    assert run_child(f"{HERE}:environment", names, environment={"COLOUR": "red"}) == ["/nowhere", "red"]
    monkeypatch.delenv("PYTHONPATH")
    assert run_child(f"{HERE}:environment", names) == [None, os.environ.get("COLOUR")]


def test_threads_are_limited_by_the_variables_of_the_libraries() -> None:
    names = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"]
    with ChildProcess(f"{HERE}:environment", names, num_threads=3) as child:
        assert child.result() == ["3", "3"]


def test_the_log_is_kept_where_it_is_wanted(tmp_path: Path) -> None:
    with ChildProcess(f"{HERE}:double", 1, log=tmp_path / "log.txt") as child:
        child.result()
    assert (tmp_path / "log.txt").read_text().splitlines() == ['{"result": "printed"}', '{"result": "written"}']


def test_a_function_that_is_not_there_is_quoted() -> None:
    with pytest.raises(LuthierError, match="has no attribute 'nothing'"):
        run_child(f"{HERE}:nothing", None)
