"""`luthier monitor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.records.monitoring import WatchSettings
from luthier.core.records.traffic import Exchange
from luthier.features.monitoring import scheduled_suites as watch_settings
from luthier.features.monitoring.service import set_model_settings
from luthier.features.traffic import service as traffic
from luthier.ml.drift.traffic.log import line_of
from luthier.platform.home.context import Context
from luthier.testing.traffic import made_traffic


def fill(home: Path) -> None:
    with Context.open(home) as context:
        frame = made_traffic(0.5, 8.0, seed=1)
        moved = context.access.now() - float(frame["at"].max()) - 1  # type: ignore[arg-type]
        rows = (
            row | {"messages": tuple(json.loads(row["messages"])), "at": row["at"] + moved}
            for row in frame.iter_rows(named=True)
        )
        traffic.spool(context).append([line_of(Exchange(project_id="default", model="shop", **row)) for row in rows])


def test_a_look_is_shown_written_and_given_as_json(luthier: Any, home: Path, tmp_path: Path) -> None:
    fill(home)
    done = luthier("monitor", "shop", "--since", "6h", "--html", tmp_path / "look.html", "--group", "women=she|her")
    assert done.code == 0
    assert "There is too little data to see whether anything has changed." in done.out
    assert (tmp_path / "look.html").is_file()
    document = luthier("monitor", "shop", "--since", "6h", "--json").document
    assert {one["state"] for one in document["signals"]} == {"unknown"}
    assert any(one["name"] == "bias_women_answer_refusals" for one in document["signals"])
    with Context.open(home) as context:
        assert watch_settings.model_settings(context, "default", "shop").groups == {"women": "she|her"}


def test_a_wrong_name_span_or_group_is_told(luthier: Any, home: Path) -> None:
    fill(home)
    assert "models with requests: 'shop'" in luthier("monitor", "shpo").err
    assert luthier("monitor", "shop", "--since", "soon").code == 2
    assert luthier("monitor", "shop", "--group", "women").code == 2


def test_a_judge_of_the_command_stays_whatever_the_operator_has_configured(luthier: Any, home: Path) -> None:
    fill(home)
    with Context.open(home) as context:
        chosen = WatchSettings(judge="http://127.0.0.1:9/v1#m", judge_is_configured=True)
        set_model_settings(context, "default", "shop", chosen)
        luthier("monitor", "shop", "--judged", "20")
        kept = watch_settings.model_settings(context, "default", "shop")
        assert (kept.judge, kept.judge_is_configured, kept.num_judged) == (chosen.judge, True, 20)
        luthier("monitor", "shop", "--judge", "http://127.0.0.1:9/v1#m")
        kept = watch_settings.model_settings(context, "default", "shop")
        assert (kept.judge, kept.judge_is_configured) == (chosen.judge, False)
        luthier("monitor", "shop", "--judge", "none")
        assert watch_settings.model_settings(context, "default", "shop").judge is None
