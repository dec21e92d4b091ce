"""The engine: one thread owns the model, and answers the requests of all others together."""

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from tuninglab.adapters.switching import adapters_of, switch
from tuninglab.kernels.few_rows import few_rows_in_c
from tuninglab.models.decoding import Decoder, decoder_of
from tuninglab.serving.batch import Batch
from tuninglab.serving.exchange import BusyError, ClosedError, Done, Event, Request
from tuninglab.serving.kept import KeptLatents, KeptPrefixes
from tuninglab.serving.reading import Reader, ServedModel
from tuninglab.serving.rows import Answering, Asked, Row
from tuninglab.serving.sampling import Vocabulary
from tuninglab.training.hardware import free_memory_bytes

# Tokens that the rows of one adapter get before it is the turn of another's.
SLICE = 16
# Of the memory that is free once the model is loaded: for rows under way, and for dialogues kept.
ROWS_SHARE, KEPT_SHARE = 1 / 2, 1 / 8
USUAL_ROWS = 8
# The thread stays so long after the last answer.
IDLE_S = 5.0

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread that is within torch as Python goes would take the process down with it.
    for engine in list(_engines):
        engine.close()


class Engine:
    """Answers requests, several at a time.

    Rows are decoded together: each joins as its prompt was read and leaves as its answer ends, and
    is the same as alone, to what the order of sums changes in the last bits.

    Attributes:
        models: names of what is served; the first is meant where none is named.

    Args:
        model: a Flamingo, or one wrapped by PEFT through `load_adapter`.
        processor: its processor.
        served: by the names that clients use.
        max_new_tokens: longest answer, where a request names none.
        max_rows: decoded together; None: by what is computed fastest here.
        max_queue: requests that wait, beyond those that could be decoded.
        image_cache: pictures whose latents are kept.
        prefix_cache: dialogues whose keys and values are kept.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        served: Mapping[str, ServedModel],
        max_new_tokens: int = 512,
        max_rows: int | None = None,
        max_queue: int = 16,
        image_cache: int = 64,
        prefix_cache: int = 8,
    ):
        self.models = tuple(served)
        self.model, self.served, self.max_queue = model, served, max_queue
        flamingo = model.get_base_model() if hasattr(model, "get_base_model") else model
        free_bytes = free_memory_bytes(flamingo.device)
        prefixes = KeptPrefixes(prefix_cache, int(KEPT_SHARE * free_bytes))
        latents = KeptLatents(image_cache)
        self.reader = Reader(flamingo, processor, served, latents, prefixes, max_new_tokens)
        self.vocabulary = Vocabulary(processor.tokenizer)
        self.room_bytes = int(ROWS_SHARE * free_bytes)
        decoder, _ = decoder_of(flamingo.lang_encoder)
        self.max_rows, self.rows_reason = max_rows or USUAL_ROWS, "asked for"
        if max_rows is None and decoder is not None:
            self.max_rows = decoder.most_rows
            self.rows_reason = "as many as are decoded in one call of C"
        elif max_rows is None:
            self.rows_reason = "usual where layers are computed one by one"
        self._decoder: Decoder | None = decoder
        self._waiting: deque[Asked] = deque()
        self._running: dict[str, list[Batch]] = {name: [] for name in served}
        self._active, self._turns = self.models[0], 0
        self._token_bytes, self._mean_s = 0, 1.0
        self._changed, self._closing = threading.Condition(), False
        # There only while there is something to do: an engine that nobody holds any more is gone.
        self._thread: threading.Thread | None = None
        _engines.add(self)

    def submit(
        self, requests: Sequence[Request], on_event: Callable[[int, Event], None]
    ) -> Answering:
        """Queue requests that are taken together or not at all; returns at once.

        Args:
            requests: one or several, such as the n answers to one prompt.
            on_event: is called in the engine's thread with the number of a request and what has
                become of it: any number of `Text`, then one `Done` or `Failed`. It must be quick.

        Raises:
            BusyError: too many wait already.
            ClosedError: the engine is being closed.
        """
        asked = [Asked(r, partial(on_event, number)) for number, r in enumerate(requests)]
        with self._changed:
            if self._closing:
                raise ClosedError("the engine is being closed")
            waiting, running = self.load()
            # What can be decoded at once does not wait.
            beyond = waiting + len(asked) - max(0, self.max_rows - running)
            if beyond > self.max_queue:
                raise BusyError(max(1, round(self._mean_s * (1 + waiting / self.max_rows))))
            self._waiting.extend(asked)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return Answering(asked, self._changed)

    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many are being answered."""
        with self._changed:
            return len(self._waiting), self._count()

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let those that are there end for so long, then end the thread."""
        until = time.monotonic() + drain_s
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._busy(), max(0.0, until - time.monotonic()))
            for asked in [*self._waiting, *(row.asked for row in self._rows())]:
                asked.cancelled = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        flamingo = self.reader.model
        with torch.inference_mode(), few_rows_in_c(flamingo.lang_encoder):
            while self._wait():
                try:
                    self._turn()
                except Exception as error:
                    self._fail(error)

    def _wait(self) -> bool:
        """Wait a while for something to do; False: the thread is to end."""
        with self._changed:
            self._changed.notify_all()  # whoever closes waits for the last answer
            self._changed.wait_for(lambda: self._busy() or self._closing, IDLE_S)
            if not self._busy():
                self._thread = None
            return self._thread is not None

    def _turn(self) -> None:
        """Read one prompt at most, so that nobody waits long for a token; then a token each."""
        self._drop_cancelled()
        if not self._busy():
            return
        self._activate(self._next())
        if asked := self._admitted():
            self._read(asked)
        for batch in list(self._running[self._active]):
            self._step(batch)

    def _next(self) -> str:
        """Whose turn it is: others wait for a slice of tokens, but not beyond."""
        names = [name for name in self.models if self._running[name]]
        names += [asked.request.model for asked in self._waiting]
        if self._active in names and self._turns < SLICE:
            return self._active
        # In the order of the models after the active one, so that none is passed over.
        place = self.models.index(self._active) + 1
        ring = [*self.models[place:], *self.models[:place]]
        return next(name for name in ring if name in names)

    def _activate(self, name: str) -> None:
        self._turns = 0 if self._turns >= SLICE or name != self._active else self._turns + 1
        self._active = name
        adapter = self.served[name].adapter
        if hasattr(self.model, "held_adapters") and adapters_of(self.model).active != adapter:
            switch(self.model, adapter)
            # It holds addresses of weights.
            self._decoder, _ = decoder_of(self.reader.model.lang_encoder)

    def _admitted(self) -> Asked | None:
        """The next request of the active model, if there is room for it; else it waits on."""
        with self._changed:
            asked = next((a for a in self._waiting if a.request.model == self._active), None)
            if asked is None or self._count() >= self.max_rows:
                return None
        try:
            tokens = self.reader.encode(asked)
        except Exception as error:
            tokens = 0
            asked.fail(error)
        if tokens and self._count() and not self._has_room(tokens):
            return None
        with self._changed:
            self._waiting.remove(asked)
        return asked if tokens else None

    def _has_room(self, tokens: int) -> bool:
        """Whether keys and values of all rows, and of one more of so many tokens, fit."""
        rows = [*self._rows()]
        longest = max([tokens, *(row.prompt_tokens + row.most for row in rows)])
        return (len(rows) + 1) * longest * self._token_bytes <= self.room_bytes

    def _read(self, asked: Asked) -> None:
        try:
            row, cache, logits = self.reader.read(asked)
            row.take(logits, self.vocabulary)
            if not row.ended:
                self._join(row, cache)
        except Exception as error:
            asked.fail(error)

    def _join(self, row: Row, cache: Any) -> None:
        if self.reader.plain:
            size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            self._token_bytes = size // cache.get_seq_length()
        batches = self._running[self._active]
        if not batches or not self.reader.plain:
            batches.append(Batch())
        batches[-1].join(row, cache)

    def _step(self, batch: Batch) -> None:
        if self._outgrown(batch):
            logits, batch.cache = self.reader.reread(batch.rows[0])
            batch.mask, logits = batch.mask.new_ones(1, len(batch.rows[0].ids)), logits[None]
        else:
            logits = batch.step(self.reader.model, self._decoder)
        for row, own in zip(batch.rows, logits, strict=True):
            row.take(own, self.vocabulary)
        self._leave(self._active, batch)

    def _outgrown(self, batch: Batch) -> bool:
        """Whether the next token is the first for which LongRoPE turns all positions otherwise."""
        length = batch.cache.get_seq_length()
        return not self.reader.plain and length == self.reader.first_length

    def _leave(self, name: str, batch: Batch) -> None:
        ended = [row for row in batch.rows if row.ended]
        for row in ended if self.reader.plain else ():
            layers = batch.layers_of(row)
            # The last token was chosen and not read.
            signature = row.signature[: layers[0][0].shape[2]]
            self.reader.prefixes.keep(name, signature, layers)
        for row in ended:
            self._mean_s += 0.2 * (time.monotonic() - row.asked.asked_s - self._mean_s)
        with self._changed:
            batch.leave(ended)
            if not batch.rows:
                self._running[name].remove(batch)

    def _drop_cancelled(self) -> None:
        """Free the places of those whom nobody waits for."""
        with self._changed:
            gone = [asked for asked in self._waiting if asked.cancelled]
            self._waiting = deque(asked for asked in self._waiting if not asked.cancelled)
        for asked in gone:
            asked.tell(Done("cancelled", len(asked.ids or ()), 0))
        for name, batches in self._running.items():
            for batch in list(batches):
                for row in batch.rows:
                    if row.asked.cancelled:
                        row.end("cancelled")
                self._leave(name, batch)

    def _fail(self, error: Exception) -> None:
        """Give up what was being answered, or what waits for it: nobody is left waiting in vain."""
        with self._changed:
            lost = [row.asked for row in self._rows() if not row.ended]
            self._running = {name: [] for name in self.models}
            if not lost:
                lost, self._waiting = [*self._waiting], deque()
        for asked in lost:
            asked.fail(error)

    def _rows(self) -> Iterator[Row]:
        return (r for batches in self._running.values() for batch in batches for r in batch.rows)

    def _count(self) -> int:
        return sum(1 for _ in self._rows())

    def _busy(self) -> bool:
        return bool(self._waiting) or self._count() > 0
