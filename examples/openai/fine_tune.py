"""A fine-tuning job by OpenAI's client library: upload, train, wait, ask the result.

    luthier up                                                               # on your server; prints a key, once
    export OPENAI_BASE_URL=http://127.0.0.1:8520/v1 OPENAI_API_KEY=KEY
    python examples/openai/fine_tune.py [--model NAME]

Nothing below is about Luthier: without OPENAI_BASE_URL the program uses OpenAI's own service, with `--model` set to
one of its models. It needs `pip install openai`. The task is to write dates as ISO 8601.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date, timedelta

import openai


def make_rows() -> bytes:
    """Your data goes here: one JSON object a line, with `messages`."""
    days = [date(1990, 1, 1) + timedelta(days=97 * number) for number in range(60)]
    texts = [(f"Write as ISO 8601: {day.strftime('%d %B %Y')}", day.isoformat()) for day in days]
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in texts]
    return "".join(json.dumps({"messages": row}) + "\n" for row in rows).encode()


def main() -> None:
    """Train, print the events of the job as they come, and ask the tuned model."""
    parser = argparse.ArgumentParser(description="A fine-tuning job by OpenAI's client library.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a base model (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the rows (default: %(default)s)")
    arguments = parser.parse_args()

    client = openai.OpenAI()
    file = client.files.create(file=("dates.jsonl", make_rows()), purpose="fine-tune")
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": arguments.epochs}}}
    job = client.fine_tuning.jobs.create(
        model=arguments.model, training_file=file.id, suffix="dates", method=method, seed=1
    )
    shown: set[str] = set()
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(2)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
            if event.id not in shown:
                shown.add(event.id)
                print(event.message)
    if job.status != "succeeded":
        sys.exit(f"{job.id} is {job.status}: {job.error.message if job.error else 'no reason was given'}")

    question = {"role": "user", "content": "Write as ISO 8601: 24 June 2015"}
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[question], max_tokens=16, temperature=0
    )
    print(f"{job.fine_tuned_model}: {answer.choices[0].message.content}")


if __name__ == "__main__":
    main()
