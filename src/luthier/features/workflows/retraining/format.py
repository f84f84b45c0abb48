"""What the stages of a retraining came to, in sentences."""

from __future__ import annotations

from typing import Any


def format_stage(name: str, came: dict[str, Any]) -> str:
    """What came of a stage, in a sentence; empty of one that has made nothing yet."""
    if not came:
        return ""
    if name == "rows":
        left = "; ".join(f"{num:,} left out: {reason}" for reason, num in came["left_out"].items())
        old, new = came["num_old_held_out"], came["num_new_held_out"]
        return (
            f"{came['num_new']:,} reviewed rows beside {came['num_old']:,} of the last run "
            f"({came['num_replaced']:,} replaced); held out: {old:,} old, {new:,} new" + (f"; {left}" if left else "")
        )
    if name == "audit":
        return f"grade {came['grade']}; {came['report']}"
    if name == "version":
        return f"{came['train']['dataset_id']} version {came['train']['version']}"
    if name == "train":
        return f"{came['run_id']}, started from the {came['started_from']} model" if "started_from" in came else ""
    if name == "judge":
        said = (f"{which} rows: {came[f'{which}_said']}" for which in ("old", "new") if f"{which}_said" in came)
        return "; ".join(said)
    if name == "canary":
        made = f"revision {came.get('revision')} gives it {came.get('fraction') or 0:.0%} of the users"
        return made if came["said"] == "made" else f"offered: {came['command']}"
    return str(came.get("said", ""))
