"""The logs of a backtest: what Kafka would hold of the examples, with the same offsets.

In: the outputs of commits. Out: examples and commands to fold, in order. Invariant: offsets are those that the
transactional topics of one worker would have: each transaction that writes to the examples log ends in a marker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from tidemill.core.examples import between, joined, no_examples
from tidemill.core.records import Command, ExampleColumns, Output, Partition, Span
from tidemill.io.wire import decode_examples

OnExamples = Callable[[ExampleColumns], None]
OnOutputs = Callable[[str, list[bytes]], None]  # topic, values


class BacktestLog:
    """Fulfils `apps.cycle.Publisher`, and is the log that the models fold.

    next_offset: of the examples log. own_next: behind its last record that counts.
    """

    def __init__(
        self, examples_topic: str, *, kept_offsets: int, on_examples: OnExamples, on_outputs: OnOutputs
    ) -> None:
        """`kept_offsets`: of the examples log, for those who look back."""
        self._examples_topic = examples_topic
        self._kept_offsets = kept_offsets
        self._on_examples = on_examples
        self._on_outputs = on_outputs
        self._waiting: list[ExampleColumns] = []
        self._commands: list[Command] = []
        self._kept: deque[ExampleColumns] = deque()
        self.next_offset = 0
        self.own_next = 0

    def publish(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        spans: Mapping[Partition, Span],
        slices: Mapping[Partition, bytes],
    ) -> None:
        by_topic: dict[str, list[bytes]] = {}
        for partition in sorted(outputs):
            for output in outputs[partition]:
                by_topic.setdefault(output.topic, []).append(output.value or b"")
        for topic, values in by_topic.items():
            if topic == self._examples_topic:
                self._append(values)
            else:
                self._on_outputs(topic, values)

    def command(self, kind: str, *, version: str, expects: str, cause: str, time: int) -> Command:
        """A command in a transaction of its own."""
        name = f"{self.next_offset}"
        command = Command(self.next_offset, name, kind, expects, version, cause, time)
        self._commands.append(command)
        self.own_next = command.offset + 1
        self.next_offset = command.offset + 2
        return command

    def take(self, until: int) -> tuple[ExampleColumns, list[Command]]:
        """What comes before offset `until` and was not taken yet."""
        examples = [each for each in self._waiting if int(each.offset[0]) < until]
        self._waiting = [each for each in self._waiting if int(each.offset[0]) >= until]
        commands = [each for each in self._commands if each.offset < until]
        self._commands = [each for each in self._commands if each.offset >= until]
        return (joined(examples) if examples else no_examples()), commands

    def history(self, start: int, end: int) -> ExampleColumns:
        """The examples at offsets [start, end) that are kept."""
        return between(joined(list(self._kept)), start, end) if self._kept else no_examples()

    def _append(self, values: list[bytes]) -> None:
        first = self.next_offset
        examples, _ = decode_examples(values, range(first, first + len(values)))
        self._waiting.append(examples)
        self._kept.append(examples)
        while int(self._kept[0].offset[-1]) < first - self._kept_offsets:
            self._kept.popleft()
        self.own_next = first + len(values)
        self.next_offset = self.own_next + 1
        self._on_examples(examples)
