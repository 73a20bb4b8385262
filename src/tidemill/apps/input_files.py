"""Files instead of Kafka: which file feeds which topic, and their records as lanes of a replay.

In: an app, `TOPIC=PATH` texts. Out: paths by topic, lanes by partition. Invariant: a record is in the partition to
which `tidemill produce` would publish it, in the same order, so that equal times are ordered as in Kafka.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tidemill.core.merge import Offered
from tidemill.core.records import Partition
from tidemill.core.spec import AppSpec, TopicSpec
from tidemill.errors import ConfigError
from tidemill.io.files import FileChunk, read_records
from tidemill.io.offered import offered
from tidemill.io.partitioner import partitions_of

CODE_FILE = "TM-1060"


class FileMessage:
    """A row of a file in the place of a Kafka message; fulfils `io.source.Message`."""

    __slots__ = ("_key", "_time", "_value")

    def __init__(self, time: int, key: bytes, value: bytes) -> None:
        self._time, self._key, self._value = time, key, value

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time  # 1: the producer's time, as Kafka calls it


def files_by_topic(app: AppSpec, texts: Sequence[str]) -> dict[str, list[Path]]:
    """The files of `TOPIC=PATH` texts, by topic; a topic that is named again has several files, in this order.

    Raises:
        ConfigError: TM-1060, a text that is not of this form, a topic that the app lacks, a file that is missing.
    """
    names = [topic.name for topic in app.topics]
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(CODE_FILE, f"--file {text}: write TOPIC=PATH; topics are {', '.join(names)}")
        if name not in names:
            raise ConfigError(
                CODE_FILE, f"--file {text}: app {app.name} has no topic {name!r}; it has {', '.join(names)}"
            )
        if not Path(path).is_file():
            raise ConfigError(CODE_FILE, f"--file {text}: {path} is no file; give the path of an existing one")
        found.setdefault(name, []).append(Path(path))
    return found


def require_all_topics(app: AppSpec, files: Mapping[str, Sequence[Path]]) -> None:
    """A replay without one of the inputs would compute other features, and say nothing.

    Raises:
        ConfigError: TM-1060, a topic has no file.
    """
    if missing := [topic.name for topic in app.topics if topic.name not in files]:
        raise ConfigError(
            CODE_FILE,
            f"no file for {', '.join(missing)}; add --file {missing[0]}=PATH, a file without rows if there is nothing",
        )


def file_lanes(app: AppSpec, files: Mapping[str, Sequence[Path]]) -> dict[Partition, Iterator[list[Offered]]]:
    """The records of the files by partition, with offsets from 0.

    The partitions of a topic are read together: what one asks for is kept for the others.
    """
    lanes: dict[Partition, Iterator[list[Offered]]] = {}
    for topic in app.topics:
        if topic.name in files:
            shared = _Split(topic, files[topic.name])
            lanes.update((Partition(topic.name, at), shared.lane(at)) for at in range(topic.partitions))
    return lanes


class _Split:
    """The chunks of one topic, dealt out to its partitions."""

    def __init__(self, topic: TopicSpec, paths: Sequence[Path]) -> None:
        self._chunks = read_records(topic, paths)
        self._waiting: list[deque[list[Offered]]] = [deque() for _ in range(topic.partitions)]
        self._next_offsets = [0] * topic.partitions

    def lane(self, partition: int) -> Iterator[list[Offered]]:
        waiting = self._waiting[partition]
        while True:
            while not waiting:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return
                self._deal(chunk)
            yield waiting.popleft()

    def _deal(self, chunk: FileChunk) -> None:
        parts: list[list[Offered]] = [[] for _ in self._waiting]
        partitions = partitions_of(chunk.keys, len(parts)).tolist()
        rows = zip(partitions, chunk.time.tolist(), chunk.keys, chunk.values, strict=True)
        for partition, time, key, value in rows:
            offset = self._next_offsets[partition]
            parts[partition].append(offered(FileMessage(time, key, value), offset))
            self._next_offsets[partition] = offset + 1
        for partition, part in enumerate(parts):
            if part:
                self._waiting[partition].append(part)
