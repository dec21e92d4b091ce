"""A chat in the terminal, over several turns and pictures; questions may also come from a pipe."""

import difflib
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

from tuninglab.config import ChatConfig, ServeConfig
from tuninglab.console import say
from tuninglab.errors import UserError
from tuninglab.progress import working
from tuninglab.serving.conversation import Conversation

HELP = """\
Type a question, or one of:
  /image PATH  show a picture; it goes with your next question
  /base        let the base answer from now on, as it was before tuning
  /tuned       let what was tuned answer again
  /save FILE   write the conversation as a record that finetune reads
  /reset       forget the conversation and its pictures
  /help        this text
  /quit        leave (or Ctrl-D)"""
COMMANDS = ("/image", "/base", "/tuned", "/save", "/reset", "/help", "/quit")
PROMPT = "> "


def chat(config: ChatConfig) -> None:
    """Answer one question, or those from the keyboard or a pipe, until /quit or their end.

    Answers go to standard output, everything else to standard error.

    Raises:
        UserError: the model or the first picture cannot be loaded, or the one question is longer
            than the model can read.
    """
    # Loaded here, so that a wrong flag is answered before torch is imported.
    with working(f"opening {config.model}"):
        from tuninglab.serving.open_engine import open_engine

        names = ("model", "threads", "exact", "max_new_tokens")
        engine, _ = open_engine(ServeConfig(**{name: getattr(config, name) for name in names}))
    with closing(engine):
        _talk(config, Conversation.on(engine, config.system))


def _talk(config: ChatConfig, conversation: Conversation) -> None:
    # After the model: a missing model is the larger mistake of the two, and is told first.
    if config.image is not None:
        conversation.show(config.image)
        say(f"Showing {config.image}.")
    if config.ask is not None:
        _answer(config.ask, conversation)
        return
    say(f"Talking to {config.model}.\n{HELP}")
    for line in _lines():
        try:
            if not _react(line.strip(), conversation):
                return
        except UserError as error:
            # A wrong path or a long conversation is no reason to lose what was said so far.
            say(str(error))
        except KeyboardInterrupt:
            # At the keyboard, Ctrl-C during an answer means that answer; at the prompt, the chat.
            if not sys.stdin.isatty():
                raise
            say("\nStopped. Neither the question nor what was said of the answer is remembered.")


def _react(line: str, conversation: Conversation) -> bool:
    """Do what one line says; False if it says to leave."""
    command, _, rest = line.partition(" ")
    if not line:
        return True
    if command == "/quit":
        return False
    if command == "/help":
        say(HELP)
    elif command == "/reset":
        conversation.reset()
        say("Forgotten.")
    elif command in ("/base", "/tuned"):
        _turn_to(command, conversation)
    elif command == "/save":
        path = _named(rest, "/save", "a file: /save talk.json")
        conversation.save(path)
        say(f"Saved as {path}.")
    elif command == "/image":
        path = _named(rest, "/image", "the path of a picture: /image photo.jpg")
        conversation.show(path)
        say(f"Showing {path}. Ask about it.")
    elif command.startswith("/"):
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        say(f"Unknown command {command}.{hint} /help lists them.")
    else:
        _answer(line, conversation)
    return True


def _answer(question: str, conversation: Conversation) -> None:
    """Print the answer: word by word for a person, at once for a program that reads lines."""
    # Flushed, so that a program on the other side of a pipe can wait for the answer.
    if not sys.stdout.isatty():
        print(conversation.ask(question) or "(no answer)", flush=True)
        return
    answer = conversation.ask(question, on_text=lambda text: print(text, end="", flush=True))
    print("" if answer else "(no answer)", flush=True)


def _turn_to(command: str, conversation: Conversation) -> None:
    """Let the base, or what was tuned of it, answer from now on; what was said stays.

    Raises:
        UserError: there is only a base.
    """
    models = conversation.engine.models
    if len(models) == 1:
        raise UserError(f"{models[0]} has no adapter: there is nothing to compare it with.")
    conversation.asked = models[-1] if command == "/base" else models[0]
    say(f"{conversation.asked} answers from now on.")


def _named(rest: str, command: str, what: str) -> str:
    """The path after a command, without the quotes that a dragged file comes with.

    Raises:
        UserError: there is no path.
    """
    path = rest.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    if not path:
        raise UserError(f"{command} needs {what}")
    return path


def _lines() -> Iterator[str]:
    """Lines from the keyboard, with editing and history where Python has readline, or a pipe."""
    if not sys.stdin.isatty():
        if hasattr(sys.stdin, "reconfigure"):
            # Bytes that are no text become marks in the question instead of an error.
            sys.stdin.reconfigure(errors="replace")  # pyright: ignore
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (importing it is what gives input() editing)
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            say()
            return
