"""The settings of the verbs that hand a tuned model on: `serve` and `export`."""

from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional, UseAppendAction

from tuninglab.config.checks import check, check_paths, check_positive
from tuninglab.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class ServeConfig:
    """Serve a run or a model: a page to talk to it, and an OpenAI-compatible HTTP API."""

    model: Positional[str] = "embedded"
    """A run folder or one of its checkpoints, an adapter, a model directory, or `embedded`."""
    adapter: UseAppendAction[list[str]] = field(default_factory=list)
    """A further adapter on the same base, NAME=DIR; NAME is what clients call it. Repeatable."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs --api_key."""
    port: int = 8000
    """Port to listen on; 0: any that is free."""
    api_key: str | None = None
    """What clients must send as their Bearer token. None: TUNINGLAB_API_KEY, else none is asked."""
    open: bool = False
    """Open the page in this machine's browser."""
    max_new_tokens: int = 512
    """Longest answer in tokens, where the client names none."""
    max_rows: int | None = None
    """Answers written together. None: by what is computed fastest here."""
    max_queue: int = 16
    """Requests that wait; more are sent away with 503."""
    image_cache: int = 64
    """Pictures whose latents are kept for the next turn."""
    prefix_cache: int = 8
    """Dialogues whose keys and values are kept for the next turn."""
    allow_image_urls: UseAppendAction[list[str]] = field(default_factory=list)
    """A host that pictures may be fetched from, over https. Repeatable. None: only data: URLs."""
    cors_origin: str | None = None
    """The one origin whose pages may call the API from a browser. None: only the own page."""
    log_requests: bool = False
    """Print prompts and answers too, not only that there was a request."""
    exact: bool = True
    """Answer with the weights as they are saved; false: the language model's as int8."""
    threads: int | None = None
    """Threads that compute. None: one for each core."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check every range.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        check_positive(self, "max_new_tokens", "max_rows", "image_cache")
        check_positive(self, "max_queue", "prefix_cache", least=0)
        check_positive(self, "threads", most=4096)
        check_positive(self, "port", least=0, most=65535)
        check_paths(self, "model")
        names = [pair.partition("=")[0] for pair in self.adapter]
        for pair in self.adapter:
            name, _, folder = pair.partition("=")
            fine = name.strip() == name and name.isprintable() and bool(name and folder)
            check(fine, "adapter", pair, "NAME=DIR")
        check(len(set(names)) == len(names), "adapter", names, "different names")
        if self.api_key is not None:
            plain = self.api_key.isascii() and self.api_key.isprintable()
            fine = plain and self.api_key.strip() == self.api_key != ""
            # The value itself is a secret.
            check(fine, "api_key", "...", "printable ASCII without blanks at its ends")


@dataclass
class ExportConfig:
    """Write a run to carry away: its adapter or a merged model, checked, with a model card."""

    run: Positional[str]
    """A run folder or one of its checkpoints, or an adapter directory."""
    out: str | None = None
    """The folder to write, which must not exist yet."""
    merge: bool = False
    """Write a whole model, the adapter added to its base, that loads without PEFT."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Number format of a merged model. None: that of its base."""
    to: Literal["hf", "open_flamingo"] = "hf"
    """Layout: Hugging Face's, or OpenFlamingo's checkpoint.pt (with --merge)."""
    check: int = 8
    """Prompts that are answered before and after, to see that nothing changed."""
    license: str | None = None
    """License that the model card names, by its id on the hub. None: the card names none."""
    push_to_hub: str | None = None
    """Upload to this repository of the hub (owner/name) besides."""
    private: bool = False
    """With --push_to_hub: a repository that only its owner sees."""
    threads: int | None = None
    """Threads that compute. None: one for each core."""
    json: bool = False
    """Print what was written and checked as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        check_paths(self, "run", "out")
        check_positive(self, "check", most=64)
        check_positive(self, "threads", most=4096)
        if self.out is None:
            raise UserError("No place to write is named. Give --out DIR, which must not exist yet.")
        if self.private and self.push_to_hub is None:
            raise UserError("--private is of the repository on the hub: name it, --push_to_hub.")
        if self.to == "open_flamingo" and not self.merge:
            raise UserError(
                "--to open_flamingo has no place for an adapter beside the model: add --merge."
            )
        if self.dtype is not None and not self.merge:
            raise UserError("--dtype is of a merged model: add --merge, or leave it out.")
