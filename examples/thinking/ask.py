"""Serve a run, ask it one question by OpenAI's API, and print its thought and its answer.

python ask.py RUN "A shop holds 7 packs of 6 jars. 5 more jars arrive and 9 are sold. How many jars are left?"
"""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.request import Request, urlopen


def ask(url: str, model: str, question: str) -> dict[str, object]:
    """The document that the server answers with."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 128}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=600) as answer:
        return json.load(answer)


def main(run: str, question: str) -> None:
    command = ["luthier", "serve", f"arithmetic={run}", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            started = json.loads(server.stdout.readline())
            answer = ask(started["url"], "arithmetic", question)
        finally:
            server.terminate()
    message = answer["choices"][0]["message"]
    print("question:         ", question)
    print("reasoning_content:", message.get("reasoning_content"))
    print("content:          ", message["content"])
    details = answer["usage"].get("completion_tokens_details") or {}
    print("reasoning tokens: ", details.get("reasoning_tokens", 0))


if __name__ == "__main__":
    main(*sys.argv[1:3])
