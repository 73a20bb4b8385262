"""The errors of Tidemill: the class says who must act.

    TidemillError
    ├── ConfigError         the user: YAML, schema or command line        exit 3
    ├── RecordError         the producer of a record: it is dead-lettered, the stream goes on
    ├── UnavailableError    nobody yet: a server does not answer, retried; exit 4 once the deadline is over
    ├── FencedError         nobody: another worker took over; this one drops the batch and claims again
    ├── StateLostError      the operator: store or log lost data, `tidemill reset` or a restore     exit 4
    ├── ModelRefusedError   the model's maker: the last good model stays
    └── InvariantError      us: a bug                                       exit 70

Every message says what failed, where, why, and what to try; codes `TM-nnnn` are stable and are the same in logs
and dead letters: 1xxx configuration, 2xxx records, 3xxx servers, 4xxx state and claims, 5xxx models, 9xxx bugs.
"""


class TidemillError(Exception):
    """Base of all; `code` is the stable TM-nnnn, `message` what a person reads."""

    exit_code = 70

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """So that an error of another process arrives as what it is."""
        return (type(self), (self.code, self.message))


class ConfigError(TidemillError):
    exit_code = 3


class RecordError(TidemillError):
    exit_code = 1


class UnavailableError(TidemillError):
    exit_code = 4


class FencedError(TidemillError):
    exit_code = 4


class StateLostError(TidemillError):
    exit_code = 4


class ModelRefusedError(TidemillError):
    exit_code = 5


class InvariantError(TidemillError):
    exit_code = 70
