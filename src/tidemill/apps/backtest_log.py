"""The logs of a backtest: what Kafka would hold of the examples, with the same offsets.

In: the outputs of commits. Out: examples and commands to fold, in order. Invariant: offsets are those that the
transactional topics of one worker would have: each transaction that writes to the examples log ends in a marker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tidemill.core.examples import between, joined, no_examples
from tidemill.core.records import Command, ExampleColumns, Output, Partition, Span
from tidemill.io.wire import decode_examples
from tidemill.models.replica import LogPart

OnExamples = Callable[[ExampleColumns], None]
OnOutputs = Callable[[str, list[bytes]], None]  # topic, values


class BacktestLog:
    """Fulfils `apps.cycle.Publisher` and `models.replica.History`, and is the log that the models fold.

    next_offset: of the examples log. own_next: behind its last record that counts.
    """

    def __init__(
        self, examples_topic: str, *, kept_offsets: int | None, on_examples: OnExamples, on_outputs: OnOutputs
    ) -> None:
        """`kept_offsets`: of the examples log, for commands that look back; None keeps it whole."""
        self._examples_topic = examples_topic
        self._kept_offsets = kept_offsets
        self._on_examples = on_examples
        self._on_outputs = on_outputs
        self._waiting: list[ExampleColumns] = []
        self._commands: list[Command] = []
        self._kept: deque[ExampleColumns] = deque()
        self._kept_commands: list[Command] = []
        self._first_kept = 0
        self._given: deque[Command] = deque()  # to stand at their own offsets, once the log is there
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
        self._kept_commands.append(command)
        self.own_next = command.offset + 1
        self.next_offset = command.offset + 2
        return command

    def give(self, commands: Iterable[Command]) -> None:
        """Commands of the log that this one repeats, in its order: each will stand where it stood."""
        self._given.extend(commands)

    def take(self, until: int) -> tuple[ExampleColumns, list[Command]]:
        """What comes before offset `until` and was not taken yet."""
        self._place_given()
        examples = [each for each in self._waiting if int(each.offset[0]) < until]
        self._waiting = [each for each in self._waiting if int(each.offset[0]) >= until]
        commands = [each for each in self._commands if each.offset < until]
        self._commands = [each for each in self._commands if each.offset >= until]
        return (joined(examples) if examples else no_examples()), commands

    def first_offset(self) -> int:
        """Of the records that are kept."""
        return self._first_kept

    def parts(self, start: int, end: int) -> Iterator[LogPart]:
        """The records at offsets [start, end) that are kept, in log order."""
        commands = [each for each in self._kept_commands if start <= each.offset < end]
        for kept in self._kept:
            behind = min(int(kept.offset[-1]) + 1, end)
            yield LogPart(between(kept, start, end), [each for each in commands if each.offset < behind])
            commands = [each for each in commands if each.offset >= behind]
        yield LogPart(no_examples(), commands)

    def _place_given(self) -> None:
        while self._given and self._given[0].offset <= self.next_offset:
            command = self._given.popleft()
            self._commands.append(command)
            self._kept_commands.append(command)
            self.own_next = command.offset + 1
            is_followed = bool(self._given) and self._given[0].offset == self.own_next  # in the same transaction
            self.next_offset = self.own_next + (0 if is_followed else 1)

    def _append(self, values: list[bytes]) -> None:
        self._place_given()
        first = self.next_offset
        examples, _ = decode_examples(values, range(first, first + len(values)))
        self._waiting.append(examples)
        self._kept.append(examples)
        while self._kept_offsets is not None and int(self._kept[0].offset[-1]) < first - self._kept_offsets:
            self._first_kept = int(self._kept.popleft().offset[-1]) + 1
        self.own_next = first + len(values)
        self.next_offset = self.own_next + 1
        self._on_examples(examples)
