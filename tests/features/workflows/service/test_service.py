import pytest

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.workflows.service import StageRefusedError, run_pipeline
from luthier.platform.home.context import Context


@pytest.fixture
def context(tmp_path):
    with Context.open(tmp_path / "home") as opened:
        yield opened


def begin(context, *names: str) -> str:
    made = Pipeline(pipeline_id=new_id("auto"), kind="auto", asked={"goal": "x"}, stages=[Stage(name=n) for n in names])
    return context.pipelines.create(made, DEFAULT_PROJECT).pipeline_id


def test_what_a_stage_makes_reaches_the_next_and_is_not_made_again(context):
    made = begin(context, "one", "two")
    calls = []

    def one(_pipeline):
        calls.append("one")
        return {"rows": 3}

    def two(pipeline):
        calls.append("two")
        if len(calls) == 2:
            raise RequestError("no", expected="yes", do="again")
        return {"doubled": pipeline.came("one")["rows"] * 2}

    with pytest.raises(RequestError):
        run_pipeline(context, made, {"one": one, "two": two})
    assert [stage.status for stage in context.pipelines.get(made).stages] == ["done", "failed"]
    done = run_pipeline(context, made, {"one": one, "two": two})
    assert calls == ["one", "two", "two"]
    assert done.came("two") == {"doubled": 6}
    assert done.next_stage is None
    assert context.pipelines.get(made) == done
    assert [one.pipeline_id for one in context.pipelines.list(DEFAULT_PROJECT, "auto")] == [made]


def test_what_a_stage_has_begun_is_known_after_a_kill(context):
    made, ids = begin(context, "train"), []

    def train(pipeline):
        ids.append(pipeline.came("train")["run_id"])
        if len(ids) == 1:
            raise KeyboardInterrupt
        return {"run_id": ids[-1]}

    begun = {"train": lambda _pipeline: {"run_id": new_id("run")}}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(context, made, {"train": train}, begun=begun)
    assert context.pipelines.get(made).stages[0].status == "running"
    run_pipeline(context, made, {"train": train}, begun=begun)
    assert ids[0] == ids[1]


def test_a_refusal_ends_the_way_without_an_error(context):
    made, told = begin(context, "gate", "deploy"), []

    def gate(_pipeline):
        raise StageRefusedError("toxicity is above 0.1", expected="less", do="look at it")

    def deploy(_pipeline):
        raise AssertionError

    ended = run_pipeline(
        context, made, {"gate": gate, "deploy": deploy}, tell=lambda _p, stage: told.append(stage.status)
    )
    assert [stage.status for stage in ended.stages] == ["refused", "waiting"]
    assert ended.stages[0].reason == "toxicity is above 0.1"
    assert told == ["running", "refused"]


def test_an_unknown_one_is_said(context):
    with pytest.raises(NotFoundError):
        context.pipelines.get("auto-20260101-000000-abcdef")
