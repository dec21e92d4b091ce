"""How many answers `tuninglab serve` gives, to one client and to many, with pictures and without.

    python benchmarks/serving.py --rounds 3

A Flamingo 768 wide of 152 million parameters with random weights (comparison/workloads.py) and a
vocabulary of bytes, in bf16: what it says is noise, what it costs is not. Each client asks a few
questions one after the other over HTTP, streamed, every answer of the same number of tokens. Ways,
a round after the other, in turns: `together`, the server as it is; `one_at_a_time`, the same with
one row (`--max_rows 1`), the others wait; `generate`, transformers' own, called in a loop on the
same questions without a server. Writes benchmarks/results/serving.json.
"""

import argparse
import base64
import http.client
import io
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serving.json"
sys.path.insert(0, str(ROOT))

CLIENTS = (1, 4, 16)
QUESTIONS = 2  # of each client, one after the other
ANSWER_TOKENS = 48
SIDE = 224


class Answer(NamedTuple):
    """Seconds to the first token of an answer and to its end, and its tokens."""

    first_s: float
    total_s: float
    tokens: int


def save_model(folder: Path) -> None:
    """The workload's Flamingo, with a tokenizer of as many rows that knows bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

    from tuninglab.comparison.workloads import FlamingoWorkload
    from tuninglab.models.build import add_flamingo_tokens
    from tuninglab.models.processing import FlamingoProcessor

    workload = FlamingoWorkload()
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"word{number}" for number in range(workload.vocabulary - 3 - len(words))]
    core = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    add_flamingo_tokens(tokenizer)
    torch.manual_seed(0)
    model: Any = workload.make().to(torch.bfloat16)
    # All answers are of one length: what a client waits for is then the work, not its luck.
    model.generation_config.min_new_tokens = ANSWER_TOKENS
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    FlamingoProcessor(pictures, tokenizer).save_pretrained(folder)


def questions(client: int, pictures: bool, round_: int) -> list[dict[str, Any]]:
    """The requests of one client in a round, none like another's or an earlier one."""
    import numpy as np
    from PIL import Image

    made = []
    for number in range(QUESTIONS):
        parts: list[dict[str, Any]] = []
        if pictures:
            random = np.random.default_rng([client, number, round_])
            file = io.BytesIO()
            pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append(
            {
                "type": "text",
                "text": f"Client {client} asks in round {round_} for the time {number}: what?",
            }
        )
        made.append(
            {
                "messages": [{"role": "user", "content": parts}],
                "stream": True,
                "max_tokens": ANSWER_TOKENS,
                "stream_options": {"include_usage": True},
            }
        )
    return made


@contextmanager
def served(model: Path, *flags: str) -> Iterator[tuple[int, int]]:
    """Port and process of `tuninglab serve`, from when it answers on."""
    with tempfile.TemporaryFile("w+") as log:
        port = free_port()
        command = [sys.executable, "-m", "tuninglab", "serve", str(model), "--port", str(port)]
        process = subprocess.Popen([*command, *flags], cwd=ROOT, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while not answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start:\n{log.read()}")
                time.sleep(0.1)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port: int) -> bool:
    """Whether a server is there by now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ask(port: int, request: dict[str, Any]) -> Answer:
    """One streamed answer; the first token is in the first chunk with text."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(request), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    first_s, tokens = 0.0, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and not first_s:
            first_s = time.perf_counter() - begun
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    connection.close()
    return Answer(first_s, time.perf_counter() - begun, tokens)


def crowd(port: int, clients: int, pictures: bool, round_: int) -> tuple[list[Answer], float]:
    """What so many clients get at once, and the seconds until the last has its last answer."""
    # Made before: what clients do is not measured.
    asked = [questions(client, pictures, round_) for client in range(clients)]
    found: list[Answer] = []
    failed: list[BaseException] = []

    def work(requests: Sequence[dict[str, Any]]) -> None:
        try:
            found.extend(ask(port, request) for request in requests)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(requests,)) for requests in asked]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found, time.perf_counter() - begun


def generated(
    model: Any, processor: Any, pictures: bool, round_: int
) -> tuple[list[Answer], float]:
    """The questions of the first client by `generate`, one after the other."""
    import torch
    from PIL import Image
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        """When the first token came."""

        def __init__(self) -> None:
            self.calls, self.first = 0, 0.0

        def put(self, value: Any) -> None:
            """The prompt, then tokens."""
            self.calls += 1
            if self.calls == 2:
                self.first = time.perf_counter()

        def end(self) -> None:
            """Nothing is held back."""

    found, begun = [], time.perf_counter()
    for request in questions(0, pictures, round_):
        start, clock = time.perf_counter(), Clock()
        parts = []
        for part in request["messages"][0]["content"]:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                part = {"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")}
            parts.append(part)
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        with torch.inference_mode():
            ids = model.generate(
                **inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False, streamer=clock
            )
        tokens = ids.shape[1] - inputs["input_ids"].shape[1]
        found.append(Answer(clock.first - start, time.perf_counter() - start, tokens))
    return found, time.perf_counter() - begun


def peak_mib(pid: int) -> int:
    """The most memory that a process has held."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(text.partition("VmHWM:")[2].split()[0]) // 1024


def row(way: str, clients: int, pictures: bool, runs: Sequence[Any]) -> dict[str, Any]:
    """What came of the rounds of one way."""
    rates = [sum(answer.tokens for answer in found) / total_s for found, total_s in runs]
    firsts = sorted(answer.first_s for found, _ in runs for answer in found)
    return {
        "way": way,
        "clients": clients,
        "pictures": pictures,
        "tokens_per_s": round(statistics.median(rates), 1),
        "tokens_per_s_of_rounds": [round(rate, 1) for rate in rates],
        "first_token_s_p50": round(statistics.median(firsts), 3),
        "first_token_s_p95": round(firsts[int(0.95 * (len(firsts) - 1))], 3),
        "answers": len(firsts),
    }


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Rows of all ways; a first round warms up."""
    from tuninglab.serving.open_model import open_model

    model, processor = open_model(str(folder))
    runs: dict[tuple[str, int, bool], list[Any]] = {}
    # A queue that takes all clients: what is measured is waiting, not being sent away.
    queue = ("--max_queue", "64", "--max_new_tokens", str(ANSWER_TOKENS))
    with (
        served(folder, *queue) as (together, pid),
        served(folder, *queue, "--max_rows", "1") as (alone, pid_alone),
    ):
        for number in range(rounds + 1):
            for pictures in (False, True):
                made = [(("generate", 1, pictures), generated(model, processor, pictures, number))]
                for clients in CLIENTS:
                    # In turns, each round in the order of the last one reversed.
                    ways = [("together", together), ("one_at_a_time", alone)]
                    for way, port in ways[:: -1 if number % 2 else 1]:
                        run = crowd(port, clients, pictures, 100 * clients + number)
                        made.append(((way, clients, pictures), run))
                for key, done in made if number else ():
                    runs.setdefault(key, []).append(done)
        memory = {"together": peak_mib(pid), "one_at_a_time": peak_mib(pid_alone)}
    rows = [row(*key, some) for key, some in runs.items()]
    return {"rows": rows, "peak_memory_mib": memory}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    from tuninglab.comparison.machine import describe_machine, load_average
    from tuninglab.comparison.machine import now as today
    from tuninglab.console import Choices
    from tuninglab.run_folder import versions
    from tuninglab.training.hardware import best_device

    before = load_average()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        measured = measure(Path(folder) / "model", options.rounds)
    result = {
        **measured,
        "questions_of_a_client": QUESTIONS,
        "answer_tokens": ANSWER_TOKENS,
        "precision": "bf16",
        "rounds": options.rounds,
        "command": " ".join(["python benchmarks/serving.py", *sys.argv[1:]]),
        "machine": describe_machine(best_device(Choices()))
        | {"load_before": before, "load_after": load_average()},
        "versions": versions(),
        "date": today(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for one in measured["rows"]:
        print(one)


if __name__ == "__main__":
    main()
