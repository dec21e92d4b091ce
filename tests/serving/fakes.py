"""An engine that answers by a script, for what a real one does only by chance."""

import contextlib
import threading

from tuninglab.serving.exchange import BusyError, ClosedError, Done, Failed


class ScriptedAnswering:
    def __init__(self):
        self.cancelled = threading.Event()

    def cancel(self):
        self.cancelled.set()


class ScriptedEngine:
    """Each request gets the events of `script(request)`, from a thread of its own.

    Attributes:
        script: of a request, what is told: events, an exception to fail with, or a
            threading.Event to wait for.
        asked: all requests.
        answerings: of each submit.
    """

    def __init__(self, script, models=("tuned", "base"), max_rows=2, max_queue=2):
        self.script, self.models = script, models
        self.max_rows, self.max_queue = max_rows, max_queue
        self.asked, self.answerings, self.threads = [], [], []
        self.waiting, self.running, self.closed, self.busy = 0, 0, False, False

    def submit(self, requests, on_event):
        if self.closed:
            raise ClosedError
        if self.busy:
            raise BusyError(1)
        answering = ScriptedAnswering()
        self.asked += requests
        self.answerings.append(answering)
        for number, request in enumerate(requests):
            thread = threading.Thread(target=self.tell, args=(number, request, on_event, answering))
            self.threads.append(thread)
            thread.start()
        return answering

    def tell(self, number, request, on_event, answering):
        for event in self.script(request):
            if isinstance(event, threading.Event):
                while not event.wait(0.01):
                    if answering.cancelled.is_set():
                        on_event(number, Done("cancelled", 1, 0))
                        return
            elif isinstance(event, Exception):
                on_event(number, Failed(event))
            else:
                on_event(number, event)

    def load(self):
        return self.waiting, self.running

    def close(self, drain_s=0.0):
        self.closed = True
        for answering in self.answerings:
            answering.cancel()
        for thread in self.threads:
            with contextlib.suppress(RuntimeError):
                thread.join(30)
